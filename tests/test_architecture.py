"""The rooms are floors: a file imports only from floors below, or from its own room."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lens_skills"

# From the ground up. A room that is added gets its floor here, and nowhere else.
FLOORS = (
    ("errors",),
    ("example", "folder"),
    ("stats",),
    ("models",),
    ("activations",),
    ("tasks",),
    ("scoring",),
    ("prompts",),
    ("generation",),
    ("causal",),
    ("explanation", "diagnosis", "methods", "circuits"),
    ("reporting",),
    ("card", "shell"),
    ("pipeline", "runs"),
    ("demo", "inventory", "prompting", "reasons"),
    ("cli",),
    ("__init__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What only the room that opens models may import.
MODEL_LIBRARIES = ("transformer_lens", "transformers")
LONGEST = 250  # lines; the aim is 200, and this is where a file is two files


def files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def room(path: Path, package: Path) -> str:
    """The room a file stands in: ``tasks`` for tasks/ioi.py, ``errors`` for errors.py."""
    return path.relative_to(package).with_suffix("").parts[0]


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and full module name of every import in the file, also inside functions."""
    inside = (package.name, *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(inside[: len(inside) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from lens_skills import activations` names a room after the word import.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def lazy_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Modules named in a call to ``import_module`` by a literal."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def upward(package: Path) -> list[str]:
    """Every import that runs upwards or sideways, or brings a model library into another room."""
    found = []
    for path in files(package):
        here = room(path, package)
        place = path.relative_to(package.parent)
        if here not in FLOOR:
            found.append(f"{place}: the room {here!r} has no floor; give it one in FLOORS")
            continue
        for line, module in [*imports(path, package), *lazy_imports(path)]:
            top, _, rest = module.partition(".")
            if top in MODEL_LIBRARIES and here != "models":
                found.append(f"{place}:{line} imports {top}; only models/ may")
            if top != package.name:
                continue
            there = rest.split(".")[0]
            there = there if there in FLOOR else "__init__"  # a public name of the package
            if there != here and FLOOR[there] >= FLOOR[here]:
                found.append(f"{place}:{line} imports {module}: {here} is not above {there}")
    return found


def ill_shaped(package: Path) -> list[str]:
    """Every file that is too long or is named after nothing in particular."""
    found = []
    for path in files(package):
        place = path.relative_to(package.parent)
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > LONGEST:
            found.append(f"{place} has {length} lines, over {LONGEST}: it is two files")
        if "utils" in str(place):
            found.append(f"{place}: name the noun instead of 'utils'")
    return found


def test_no_import_runs_upwards() -> None:
    assert upward(PACKAGE) == []


def test_every_file_is_one_noun_of_readable_length() -> None:
    assert ill_shaped(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("stats/a.py", "from lens_skills.models import x", "stats is not above models"),
        ("stats/a.py", "def f():\n    import lens_skills.cli", "stats is not above cli"),
        ("stats/a.py", "from lens_skills import activations", "stats is not above activations"),
        ("stats/a.py", "from ..scoring.scores import Scores", "stats is not above scoring"),
        ("stats/a.py", "from .. import scoring", "stats is not above scoring"),
        ("runs.py", "from lens_skills import load_model", "runs is not above __init__"),
        ("runs.py", "import lens_skills.pipeline", "runs is not above pipeline"),
        ("stats/a.py", "import_module('lens_skills.cli')", "stats is not above cli"),
        ("activations/a.py", "import transformers", "only models/ may"),
        ("pipeline.py", "def f():\n    from transformer_lens.x import y", "only models/ may"),
        ("attic/a.py", "", "has no floor"),
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    path = tmp_path / "lens_skills" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    (found,) = upward(tmp_path / "lens_skills")
    assert complaint in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cli.py", "from lens_skills.pipeline import study\nfrom lens_skills.errors import E"),
        (
            "activations/a.py",
            "from lens_skills.activations.b import c\nfrom .b import c\nimport torch",
        ),
        ("activations/deep/a.py", "from ..b import c\nfrom ...errors import E"),
        ("models/load.py", "import transformers\nfrom transformer_lens import x"),
        ("__init__.py", "from lens_skills.cli import app"),
    ],
)
def test_a_downward_import_is_not(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / "lens_skills" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert upward(tmp_path / "lens_skills") == []


def test_a_long_file_and_a_nameless_one_are_found(tmp_path: Path) -> None:
    (tmp_path / "lens_skills").mkdir()
    (tmp_path / "lens_skills" / "long.py").write_text("x = 1\n" * (LONGEST + 1))
    (tmp_path / "lens_skills" / "text_utils.py").write_text("")
    long, nameless = ill_shaped(tmp_path / "lens_skills")
    assert f"{LONGEST + 1} lines" in long
    assert "utils" in nameless
