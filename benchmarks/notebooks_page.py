"""The index of the notebooks: what each asks, and how long it takes."""

from collections.abc import Mapping
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"

QUESTIONS = {
    "01": "Which neurons go with a skill, and how easily does a list of them mislead?",
    "02": "Do they do anything, more than others? Somebody else's neurons on trial.",
    "03": "What does a soft prompt learn, and several skills, prompts, positions at once?",
    "04": "Texts with no right answer: write, grade, and read neurons before and on them.",
    "05": "What does a neuron fire for, and does the model use it? Two models.",
    "06": "What sets a neuron, and through what does it act?",
    "07": "A table of your own, a metric of your own, a model of your own.",
    "08": "The edits in your own TransformerLens loop, in plain PyTorch, and while a model writes.",
    "09": "Figures, tables and one page to show, from one folder.",
    "10": "The ideas of nine papers near this one, each as a verb, in seconds.",
}


def index(numbers: Mapping[str, float]) -> tuple[list[str], ...]:
    """One row per notebook: its title with a link, its question, its minutes."""
    rows = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        number = path.name[:2]
        first = nbformat.read(path, as_version=4).cells[0].source
        title = first.partition("\n")[0].lstrip("# ")
        minutes = numbers.get(f"minutes_{number}")
        taken = "–" if minutes is None else f"{minutes:.1f}"
        rows.append([number, f"[{title}]({path.name})", QUESTIONS[number], taken])
    return ["", "notebook", "what it asks", "minutes"], *rows
