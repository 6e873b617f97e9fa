"""The results pages of the three settings: one section per script, assembled into one page.

SmolLM2's page lies in ``figures/settings``, that of a model asked for with ``--model`` in a folder
of its own below.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import lens_skills as ls
from lens_skills.plotting.drawing import Drawing

sys.path.append(str(Path(__file__).resolve().parents[1]))
from asked_model import add_model, slug
from asked_model import opened as opened
from differences import differing
from pictures import keep
from timing import save

OUT, RUNS = Path("figures/settings"), Path("runs/settings")
ORDER = ("arithmetic", "hans", "skill_mix")
SMOLLM2 = "SmolLM2-135M-Instruct"
READ_BACK: list[Path] = []  # by `kept`, and so not in the time a section took
INTRODUCTION = """# What was found in the three settings

SmolLM2-135M-Instruct, with and without a soft prompt, on arithmetic, HANS and Skill-Mix. This page
is written by `make settings`; every number on it comes from the run that wrote its section. What
did not work is said where it did not work.
"""
ASKED = """# What was found in the three settings: {model}

{model}{file}. Each section names the command that
wrote it; every number on it comes from that run, and tables lie beside the page as CSV. Sizes are
set by the processor time there was. What did not work, and what was not run, is said. SmolLM2:
[its page](../README.md).
"""


class Page:
    """One section: text, tables and pictures in the order they are given.

    Args:
        name: Of the script; also the prefix of its pictures.
        title: The section's heading.
        command: What a reader types to make it anew, without ``--model``.
        asked: The script's arguments: its folder, the model and what to call it, whether this is
            only a smoke run, and whether ``figures``, numbers that other pages tell, are kept.
        own: Whether the page is the asked model's own, in a folder of that name.
    """

    def __init__(
        self, name: str, title: str, *, command: str, asked: argparse.Namespace, own: bool = False
    ) -> None:
        self.name, self.asked = name, asked
        self.slug = slug(asked.model) if own or asked.model else ""
        self.out = Path(asked.out) / self.slug
        self.model = public_name(asked)
        self.command = command + (f" --model {self.model}" if asked.model else "")
        self.start, self.wall = time.process_time(), time.monotonic()
        self.figures: dict[str, float] = {}
        self.save = asked.save and not asked.quick
        self.parts = [f"## {title}", f"`{self.command}`"]
        if asked.quick:
            self.parts.append("**A smoke run on a few examples: no result.**")
        self.out.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """A paragraph of Markdown, also printed."""
        self.parts.append(text)
        print(f"\n{text}", flush=True)

    def table(self, frame: pd.DataFrame, caption: str, name: str = "") -> None:
        """A table, numbers to three significant digits; with a name also beside the page as CSV."""
        header = "| " + " | ".join(map(_cell, frame.columns)) + " |"
        rule = "|" + "|".join("---" for _ in frame.columns) + "|"
        rows = ["| " + " | ".join(map(_cell, row)) + " |" for row in frame.to_numpy(dtype=object)]
        self.say("\n".join([f"{caption}\n", header, rule, *rows]))
        if name:
            path = self.out / f"{self.name}_{name}.csv"
            frame.to_csv(path, index=False, float_format="%.6g")

    def picture(self, drawing: Drawing, name: str, caption: str) -> None:
        """A figure beside the page, with its numbers; the caption is also its alt text."""
        path = keep(drawing, self.out / f"{self.name}_{name}")
        self.say(f"![{caption}]({path.name})\n\n*{caption}*")

    def differ(self, names: Mapping[str, str], about: str, *, of: str = "") -> None:
        """What differs from the page of SmolLM2, from both pages' kept numbers.

        Args:
            names: In words, what each number of ``figures`` is.
            about: What else differs between the two runs: sizes, prompts, files.
            of: Ending of SmolLM2's file of numbers; "" is that of its page.
        """
        if not self.slug or self.model == SMOLLM2:
            return
        frame = differing(f"settings_{self.name}{of}", self.figures, names, self.model)
        self.say(f"### What differs from SmolLM2\n\n{about}")
        self.table(frame, "The same number on either page:", "differs")

    def write(self) -> Path:
        """The section as a file, and the whole page anew."""
        wall, own = (time.monotonic() - self.wall) / 60, (time.process_time() - self.start) / 60
        back = f"; {len(READ_BACK)} results of earlier runs were read back" if READ_BACK else ""
        took = f"This section took {wall:.0f} minutes to make{back}."
        if self.slug:
            earlier = minutes(*READ_BACK)
            took = (
                f"Processor time of one thread: {own + earlier:.1f} minutes"
                + (f", {earlier:.1f} of them in earlier runs, read back" if READ_BACK else "")
                + "."
            )
            self.figures["cpu_minutes"] = own + earlier
        self.parts.append(took)
        path = self.out / f"{self.name}.md"
        path.write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")
        head = INTRODUCTION
        if self.slug:
            file = ", of which a 4-bit GGUF file was run" if _is_gguf(self.asked.model) else ""
            head = ASKED.format(model=self.model, file=file)
        assemble(self.out, head)
        if self.save:
            kept = save(self.slug, self.figures)
            # Files and models are named by their place on this machine only in the call itself.
            said = json.loads(kept.read_text(encoding="utf-8")) | {"command": self.command}
            kept.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        return path


def assemble(out: Path, introduction: str) -> None:
    """All sections there are, as one page."""
    found = [out / f"{name}.md" for name in ORDER]
    texts = [path.read_text(encoding="utf-8") for path in found if path.exists()]
    (out / "README.md").write_text("\n".join([introduction, *texts]), encoding="utf-8")


def asked(
    description: str | None, lean: Mapping[str, Any] | None = None, **more: Mapping[str, Any]
) -> argparse.Namespace:
    """The arguments the scripts share, and those of one: ``asked(doc, rows={"type": int})``.

    Args:
        description: Of the script.
        lean: What is the default instead where a model is asked for, most being larger.
        more: The script's own options.
    """
    parser = argparse.ArgumentParser(description=description)
    add_model(parser)
    parser.add_argument("--name", help="what the page calls a model that is given as a file")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few examples, no result")
    parser.add_argument("--save", action="store_true", help="keep the numbers for other pages")
    parser.add_argument("--out", type=Path, default=OUT, help="where the page goes")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where checkpoints are kept")
    for name, options in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    if parser.parse_args().model is not None:
        parser.set_defaults(**(lean or {}))
    given = parser.parse_args()
    ls.config(progress=False)
    if given.model is not None:
        given.runs = given.runs / slug(given.model)
    if given.quick:
        given.runs = given.runs / "quick"
    return given


def public_name(asked: argparse.Namespace) -> str:
    """What a model is called on a page: as asked for; a file by ``--name``, or without its path."""
    if asked.name or asked.model is None:
        return asked.name or SMOLLM2
    return Path(asked.model).name if Path(asked.model).exists() else asked.model


def _is_gguf(model: str | None) -> bool:
    return model is not None and model.endswith(".gguf")


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
    start = time.process_time()
    result = make()
    result.save(folder)
    _clock(folder).write_text(f"{time.process_time() - start:.1f}")
    return result


def kept_table(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table read back from a CSV file, or made and written there."""
    if path.exists():
        READ_BACK.append(path)
    else:
        start = time.process_time()
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        made.to_csv(path, index=False)
        _clock(path).write_text(f"{time.process_time() - start:.1f}")
    return pd.read_csv(path)


def minutes(*folders: Path) -> float:
    """Processor time of some kept results (of an interrupted one, since it went on)."""
    clocks = [_clock(folder) for folder in folders]
    return sum(float(clock.read_text()) for clock in clocks if clock.exists()) / 60


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
