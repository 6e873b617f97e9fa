"""Importing is cheap: nothing heavy is loaded before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

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


def test_type_checkers_see_the_same_names() -> None:
    """What is imported for type checkers is what is loaded on demand, from the same rooms."""
    import lens_skills

    tree = ast.parse(Path(lens_skills.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"lens_skills.{home}.{name}" for name, home in lens_skills._HOME.items()}
    modules = {name: f"lens_skills.{home}" for name, home in lens_skills._MODULES.items()}
    assert seen == homes | modules
    assert {*seen, "__version__"} == set(lens_skills.__all__)


def test_no_room_hides_a_public_function() -> None:
    """Python binds a submodule to its package under its own name, whenever it is imported."""
    import lens_skills

    folder = Path(lens_skills.__file__).parent
    rooms = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py")}
    assert rooms & set(lens_skills._HOME) == set()


def test_a_misspelt_name_is_answered_with_the_right_one() -> None:
    import lens_skills

    with pytest.raises(AttributeError, match=r"no attribute 'explian'\. Did you mean 'explain'\?"):
        _ = lens_skills.explian  # type: ignore[attr-defined]
