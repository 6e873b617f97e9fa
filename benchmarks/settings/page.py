"""The results page of the three settings: one section per script, assembled into one page."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import lens_skills as ls
from lens_skills.plotting.drawing import Drawing

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pictures import keep
from timing import save

OUT, RUNS = Path("figures/settings"), Path("runs/settings")
ORDER = ("arithmetic", "hans", "skill_mix")
READ_BACK: list[Path] = []  # by `kept`, and so not in the time a section took
INTRODUCTION = """# What was found in the three settings

SmolLM2-135M-Instruct, with and without a soft prompt, on arithmetic, HANS and Skill-Mix. This page
is written by `make settings`; every number on it comes from the run that wrote its section. What
did not work is said where it did not work.
"""


class Page:
    """One section: text, tables and pictures in the order they are given.

    Args:
        name: Of the script; also the prefix of its pictures.
        title: The section's heading.
        command: What a reader types to make it anew.
        asked: The script's arguments: its folder, whether this is only a smoke run, and whether
            ``figures``, numbers that other pages tell, are kept.
    """

    def __init__(self, name: str, title: str, *, command: str, asked: argparse.Namespace) -> None:
        self.name, self.out = name, Path(asked.out)
        self.start = time.monotonic()
        self.figures: dict[str, float] = {}
        self.save = asked.save and not asked.quick
        self.parts = [f"## {title}", f"`{command}`"]
        if asked.quick:
            self.parts.append("**A smoke run on a few examples: no result.**")
        self.out.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """A paragraph of Markdown, also printed."""
        self.parts.append(text)
        print(f"\n{text}", flush=True)

    def table(self, frame: pd.DataFrame, caption: str) -> None:
        """A table; numbers to three significant digits."""
        header = "| " + " | ".join(map(_cell, frame.columns)) + " |"
        rule = "|" + "|".join("---" for _ in frame.columns) + "|"
        rows = ["| " + " | ".join(map(_cell, row)) + " |" for row in frame.to_numpy(dtype=object)]
        self.say("\n".join([f"{caption}\n", header, rule, *rows]))

    def picture(self, drawing: Drawing, name: str, caption: str) -> None:
        """A figure beside the page, with its numbers; the caption is also its alt text."""
        path = keep(drawing, self.out / f"{self.name}_{name}")
        self.say(f"![{caption}]({path.name})\n\n*{caption}*")

    def write(self) -> Path:
        """The section as a file, and the whole page anew."""
        minutes = (time.monotonic() - self.start) / 60
        back = f"; {len(READ_BACK)} results of earlier runs were read back" if READ_BACK else ""
        self.parts.append(f"This section took {minutes:.0f} minutes to make{back}.")
        path = self.out / f"{self.name}.md"
        path.write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")
        assemble(self.out)
        if self.save:
            save("", self.figures)
        return path


def assemble(out: Path) -> None:
    """All sections there are, as one page."""
    found = [out / f"{name}.md" for name in ORDER]
    texts = [path.read_text(encoding="utf-8") for path in found if path.exists()]
    (out / "README.md").write_text("\n".join([INTRODUCTION, *texts]), encoding="utf-8")


def asked(description: str | None, **more: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments the scripts share, and those of one: ``asked(doc, rows={"type": int})``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smoke run: few examples, no result")
    parser.add_argument("--save", action="store_true", help="keep the numbers for other pages")
    parser.add_argument("--out", type=Path, default=OUT, help="where the page goes")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where checkpoints are kept")
    for name, options in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    given = parser.parse_args()
    ls.config(progress=False)
    if given.quick:
        given.runs = given.runs / "quick"
    return given


def kept(folder: Path, kind: Any, make: Callable[[], Any]) -> Any:
    """A result read back from a folder, or made and saved there.

    Args:
        folder: Its own; remove it to make the result anew.
        kind: ``SoftPrompt``, ``Scores``, ``Verdict`` or another that saves itself.
        make: What makes it.
    """
    if folder.exists():
        READ_BACK.append(folder)
        return kind.load(folder)
    start = time.monotonic()
    result = make()
    result.save(folder)
    _clock(folder).write_text(f"{time.monotonic() - start:.1f}")
    return result


def minutes(*folders: Path) -> float:
    """What it took to make some kept results (of an interrupted one, since it went on)."""
    return sum(float(_clock(folder).read_text()) for folder in folders) / 60


def _clock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.seconds")


def funnel(scores: Any, confirm_scores: Any) -> tuple[dict[str, int], Any]:
    """How many neurons pass each gate and are confirmed, with the selection itself."""
    selection = ls.select(scores, confirm_scores)
    return dict(selection.attrition), selection


def words(verdict: Any) -> str:
    """How often each word of a verdict was said."""
    return ", ".join(f"{count} {word}" for word, count in verdict.counts.items() if count)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")
