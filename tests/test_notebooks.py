"""The notebooks run as they are, through the public API alone, and are committed with results."""

import ast
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

import lens_skills as ls

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 1_500_000
PER_CELL = 300  # seconds, many times what the slowest takes where nothing else runs
# What only this or that machine has: home and scratch folders, installations, this checkout.
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|usr|opt|var|mnt|Users|private)/|[A-Za-z]:\\|site-packages"
    f"|{re.escape(str(ROOT.parent))}/|{re.escape(sys.prefix)}"
)


each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@each
def test_it_calls_the_public_api_only(path: Path) -> None:
    found = [problem for cell in code_of(read(path)) for problem in beyond_the_api(cell.source)]
    assert not found, f"{path.name} uses {found}"


def beyond_the_api(code: str) -> list[str]:
    """Where code reaches into the package instead of using what it offers."""
    problems = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
            problems += [f"import {name}" for name in names if name.startswith("lens_skills.")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lens_skills"):
            names = [name.name for name in node.names]
            if not set(names) <= offered(str(node.module)):
                problems.append(f"from {node.module} import {', '.join(names)}")
        if isinstance(node, ast.Attribute):
            of_package = isinstance(node.value, ast.Name) and node.value.id == "ls"
            if of_package and node.attr not in ls.__all__:
                problems.append(f"ls.{node.attr}")
            if node.attr.startswith("_"):
                problems.append(f"….{node.attr}")
    return problems


def offered(module: str) -> set[str]:
    """What the package, or a room of it, offers by name; nothing of a file within a room."""
    room = ROOT / Path(*module.split("."))
    if module == "lens_skills":
        return set(ls.__all__)
    tree = ast.parse((room / "__init__.py").read_text()) if room.is_dir() else ast.Module([], [])
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


@pytest.mark.parametrize(
    "code",
    [
        "import lens_skills.scoring",
        "from lens_skills.tasks.agreement import agreement",
        "from lens_skills.scoring import torch",
        "from lens_skills import study, demo",
        "ls.runs.Run",
        "ls.figures._draw()",
    ],
)
def test_reaching_into_the_package_is_noticed(code: str) -> None:
    assert beyond_the_api(code)
    assert not beyond_the_api("import lens_skills as ls\nls.tasks.agreement()\nls.load('x')")
    assert not beyond_the_api("from lens_skills.activations import evaluate, stream")


@each
def test_it_is_committed_with_its_results(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # Warnings and progress bars are of the machine and the moment.
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@each
def test_it_names_no_path_of_a_machine(path: Path) -> None:
    notebook = read(path)
    texts = [cell.source for cell in notebook.cells]
    for cell in code_of(notebook):
        for output in cell.outputs:
            texts.append(output.get("text", ""))
            texts += [
                str(content)
                for kind, content in output.get("data", {}).items()
                if not kind.startswith("image/png")
            ]
    found = [match[0] for text in texts if (match := MACHINE.search(text))]
    assert not found, f"{path.name} names {found}"
    assert MACHINE.search(f"saved to {Path.home() / 'x'}")
    assert not MACHINE.search("and/or, she/he, 1/2, HookedTransformer/TransformerBridge")


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's own libraries warn
@each
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, on few examples, in a fresh kernel and an empty folder."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    monkeypatch.setenv("LENS_SKILLS_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    notebook = read(Path(shutil.copy(path, tmp_path)))
    client = NotebookClient(
        notebook,
        timeout=PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise AssertionError(f"{path.name}: {error}") from None
    assert all(cell.execution_count for cell in code_of(notebook))
    assert not list(folder.iterdir()), "a notebook leaves nothing behind where it runs"
