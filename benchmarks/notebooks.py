"""Runs the notebooks in full, keeps what they print and draw, and how long each takes.

python benchmarks/notebooks.py                      # all, into the files themselves
python benchmarks/notebooks.py 05 07 --save         # some; --save keeps the times for their page
"""

import json
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from timing import RESULTS, arguments, run_parts

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 1_200  # seconds a cell may take


def run(path: Path) -> float:
    """Runs a notebook in an empty folder, writes it with its results; the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LONGEST,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )
        start = time.perf_counter()
        client.execute()
        taken = time.perf_counter() - start
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of each cell differ each time
        if cell.cell_type == "code":
            # Progress and warnings are of the machine and the moment.
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    nbformat.write(notebook, path)
    return taken


def times(numbers: list[str]) -> dict[str, float]:
    """Minutes of each notebook that was asked for by its number, beside those kept before."""
    kept = RESULTS / "notebooks.json"
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    found = {name: value for name, value in before.items() if name.startswith("minutes_")}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not numbers or path.name[:2] in numbers:
            found[f"minutes_{path.name[:2]}"] = run(path) / 60
            print(f"{path.name}: {found[f'minutes_{path.name[:2]}']:.1f} minutes", flush=True)
    return found


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ.pop("LENS_SKILLS_QUICK", None)
    parser = arguments(__doc__)
    parser.add_argument("numbers", nargs="*", help="such as 05; default: all")
    asked = parser.parse_args()
    run_parts({"": lambda: times(asked.numbers)}, asked)
