"""Importing is cheap: nothing heavy is loaded before it is used."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

HEAVY = (
    "torch",
    "transformer_lens",
    "transformers",
    "scipy",
    "sklearn",
    "matplotlib",
    "pandas",
    "pyarrow",
)
LOADED = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"


def output(code: str) -> str:
    """What a fresh interpreter prints last."""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1]


def test_the_probe_sees_a_heavy_import() -> None:
    assert output(f"import matplotlib; {LOADED}") == "['matplotlib']"


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert output(f"import lens_skills; dir(lens_skills); {LOADED}") == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["score", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import lens_skills.cli.app
try:
    lens_skills.cli.app.app({arguments!r})
except SystemExit as stop:
    assert not stop.code, stop.code
{LOADED}
"""
    assert output(code) == "[]"


def test_every_public_name_is_there() -> None:
    """Each name of ``__all__`` resolves, and a wrong one is an AttributeError."""
    import lens_skills

    assert set(lens_skills.__all__) <= set(dir(lens_skills))
    for name in lens_skills.__all__:
        assert getattr(lens_skills, name) is not None
    with pytest.raises(AttributeError, match="scroe"):
        _ = lens_skills.scroe  # type: ignore[attr-defined]


def test_every_public_name_is_listed_once() -> None:
    """In the stub, sorted by room: what type checkers read is what is loaded."""
    import lens_skills

    stub = Path(lens_skills.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imported = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    listed = [alias for node in imported for alias in node.names]
    assert all(alias.asname == alias.name for alias in listed)  # without it, a checker hides it
    names = [alias.name for alias in listed]
    assert len(names) == len(set(names))
    assert {*names, "__version__"} == set(lens_skills.__all__)
    places = [(str(node.module), node.names[0].name) for node in imported]
    assert places == sorted(places)


def test_the_stub_is_part_of_the_package() -> None:
    """Without it no name is public: it goes into the wheel."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert "__init__.pyi" in project["tool"]["setuptools"]["package-data"]["lens_skills"]


def test_no_room_hides_a_public_function() -> None:
    """Python binds a submodule to its package under its own name, whenever it is imported."""
    import lens_skills

    folder = Path(lens_skills.__file__).parent
    rooms = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py")}
    assert rooms & set(lens_skills._MODULE) <= {"tasks"}


def test_no_file_hides_a_function_of_its_room() -> None:
    """Where a file is called as its function is, the room hands out the function."""
    import lens_skills

    for name, module in lens_skills._MODULE.items():
        if module != "lens_skills" and name not in ("figures", "graders", "metrics"):
            assert not isinstance(getattr(lens_skills, name), ModuleType), name


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("explian", "no attribute 'explian'. Did you mean 'explain'?"),
        ("compare", "'compare': it is now compare_methods."),
        ("describe", "it is now preflight, or task.preflight(model)."),
        ("own_answer", "it is now ls.metrics.model_answer."),
        ("correct", "'correct': it is ls.metrics.correct."),
        ("stream", "it is lens_skills.activations.stream."),
        ("Scores", "ls.load(folder) opens a saved one; the class is lens_skills.scoring.Scores."),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_right_one(name: str, answer: str) -> None:
    import lens_skills

    with pytest.raises(AttributeError, match=re.escape(answer)):
        getattr(lens_skills, name)


def test_what_a_gone_name_is_answered_with_is_there() -> None:
    import lens_skills
    from lens_skills import old_names as old

    for name in [*old._RENAMED, *old._MOVED, *old._MOVED_AND_RENAMED, *old._RESULTS]:
        assert name not in lens_skills.__all__
    assert {new.split(",")[0] for new in old._RENAMED.values()} <= set(lens_skills.__all__)
    for name, room in {**old._MOVED, **old._RESULTS}.items():
        place = lens_skills.metrics if room == "metrics" else import_module(f"lens_skills.{room}")
        assert hasattr(place, name)


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("metricz", "score() has no option 'metricz'. Did you mean 'metrics'?"),
        ("xyz", "score() has no option 'xyz'. It takes: model, examples, metrics"),
    ],
)
def test_an_option_that_is_not_there_is_answered_with_the_right_one(
    option: str, answer: str
) -> None:
    import lens_skills

    with pytest.raises(TypeError, match=re.escape(answer)):
        lens_skills.score(None, [], **{option: 3})


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("found", "Did you mean 'scores'?"),
        ("causal", "Did you mean 'causal_metric'?"),
        ("n_peers", "write controls=ls.controls(neurons=…)."),
        ("n_controls", "write controls=ls.controls(sets=…)."),
        ("batch_sizes", "batch_size changes no result. Set it with ls.config(batch_size=…)."),
        ("batch_size", "batch_size changes no result. Set it with ls.config(batch_size=…)."),
        ("rows", "edit_rows changes no result. Set it with ls.config(edit_rows=…)."),
    ],
)
def test_an_option_of_another_name_is_answered_with_the_new_one(option: str, answer: str) -> None:
    from lens_skills.old_names import unknown_option

    takes = dict.fromkeys(("scores", "causal_metric", "controls"))
    assert unknown_option("verb", option, takes).endswith(answer)


def test_no_public_function_takes_just_any_option() -> None:
    from inspect import Parameter, signature

    import lens_skills

    for name in lens_skills.__all__:
        value = getattr(lens_skills, name)
        # `estimate` takes the options of the verb it is asked of, and refuses all others itself.
        if hasattr(value, "__code__") and name != "estimate":
            kinds = {parameter.kind for parameter in signature(value).parameters.values()}
            assert Parameter.VAR_KEYWORD not in kinds, name


def test_a_public_function_is_the_rooms_function() -> None:
    """Its signature, its documentation and its source; and pickle finds it again."""
    import inspect
    import pickle

    import lens_skills
    from lens_skills import scoring

    assert inspect.signature(lens_skills.select) == inspect.signature(scoring.select)
    assert lens_skills.select.__doc__ == scoring.select.__doc__
    assert pickle.loads(pickle.dumps(lens_skills.select)) is lens_skills.select
