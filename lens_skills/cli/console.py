"""What the commands of the shell share: their options, opening a model, printing or ``--json``."""

import inspect
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from lens_skills.cli.feature_folders import featured
from lens_skills.cli.steps import Step
from lens_skills.cli.terminal import say
from lens_skills.errors import LensSkillsError, did_you_mean

IMPLEMENTATIONS = ("hooked", "bridge")
DTYPES = ("float32", "bfloat16", "float16", "float64")

# Options that several commands have: name, annotation, default.
_MODEL = (
    ("model", str | None, "Hub name, local folder or .gguf file. Default: bundled SmolLM2-135M."),
    ("implementation", str | None, "hooked (HookedTransformer) or bridge (TransformerBridge)."),
    ("dtype", str | None, "Of the weights: float32 (default), bfloat16, float16 or float64."),
    ("device", str | None, "cpu, cuda, cuda:1, mps (default: a GPU if there is one)."),
)
# The columns of a table that is a task: option, annotation, default, and what `open_task` calls it.
_COLUMNS = (
    ("text", str | None, "Prompt column, or a template like '{a} plus {b} is'.", "prompt"),
    ("answer", str | None, "Answer column.", "answer"),
    ("foil", str | None, "Column of the wrong answer.", "foil"),
    ("label", list[str] | None, "Label column (repeat for several).", "labels"),
    ("covariate", list[str] | None, "Covariate column (repeat for several).", "covariates"),
    ("group", str | None, "Group column: what no two splits share.", "group"),
    ("kind", str | None, "Column of input types, for the control task.", "kind"),
)
_DRY_RUN = ("dry_run", bool, "Say what it would take: time, memory, disk; make nothing.")
_AGAIN = ("again", bool, "Do again what is finished.")
_ALL = (
    ("as_json", bool, "Print one JSON object instead, errors as well."),
    ("debug", bool, "Show where an unexpected error arose."),
)
_FLAGS = {"as_json": "--json", "again": "--again", "dry_run": "--dry-run", "debug": "--debug"}


@dataclass
class Call:
    """What one command was told, and what it has to say.

    Attributes:
        args: As they were typed.
        name: Of the command.
        opening: The options that say how a model is opened.
        columns: Those that say what the columns of a table are.
        step: What it is at.
    """

    args: list[str] = field(default_factory=list)
    name: str = ""
    as_json: bool = False
    again: bool = False
    debug: bool = False
    dry_run: bool = False
    opening: dict[str, str | None] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    step: Step | None = None
    values: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    opened_in: float = 0.0
    working: ExitStack = field(default_factory=ExitStack)

    @property
    def command(self) -> str:
        """It as it is typed, without a login in an address."""
        args = [re.sub(r"(?<=://)[^/\s]*@", "[login]@", arg) for arg in self.args]
        return shlex.join(["lens-skills", *args])

    def show(self, name: str, result: Any) -> None:
        """The card of a result, or its numbers under a name of their own."""
        if self.as_json:
            from lens_skills.cli.as_json import result_values

            self.results[name] = result_values(result)
        else:
            print(repr(result), flush=True)

    def show_lines(self, name: str, values: Any, lines: Sequence[str]) -> None:
        """Something else than a result: values for programs, lines for people."""
        self.values[name] = values
        if not self.as_json:
            print("\n".join(lines), flush=True)

    def show_table(self, name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose columns fold instead of being cut."""
        self.values[name] = [dict(zip(head, row, strict=True)) for row in rows]
        if self.as_json:
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in head:
            table.add_column(title, overflow="fold")  # what is to be typed must not be cut short
        for row in rows:
            table.add_row(*row)
        Console().print(table)

    def wrote(self, *places: Path | str) -> None:
        """The files and folders that hold the result."""
        if not places:
            return
        self.written += map(str, places)
        say(f"written to {' and '.join(map(str, places))}")

    def note(self, text: str) -> None:
        """Something a reader of the result must know."""
        self.notes.append(text)
        say(f"note: {text}")

    def then(self, command: str) -> None:
        """The command that comes next, if one does."""
        if command:
            self.values["next"] = command
            say(f"next: {command}")

    def begin(self, step: Step, load: Callable[[], Mapping[str, Any]]) -> bool:
        """Whether there is something to do; where it is done already, what is there is shown.

        Args:
            step: What is to be made.
            load: Reads what was made, by the names `show` is given.
        """
        self.step = step
        done = "" if self.again else step.finished()
        self.values["finished_before"] = bool(done)
        if not done:
            if not self.dry_run:
                from lens_skills.checkpoints import working

                self.working.enter_context(working(step.kept_in, self._asked(step)))
            return True
        for name, result in load().items():
            self.show(name, result)
        self.written.append(str(step.place))
        say(done)
        self.then(step.next())
        return False

    def _asked(self, step: Step) -> dict[str, Any]:
        opened = {f"--{name}": value for name, value in self.opening.items()}
        plain = {"verb": self.name, **opened, **step.asked}
        return json.loads(json.dumps(plain, default=str))

    def make(self, verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a verb makes; with ``--dry-run`` what it would take, and the command ends.

        Raises:
            LensSkillsError: Nothing can be written where it should go, or it does not fit there.
        """
        if not self.dry_run:
            from lens_skills.checkpoints import check_call

            check_call(verb, *args, **options)
            return verb(*args, **options)
        from lens_skills.estimation import estimate

        self.show_estimate(verb.__name__, estimate(verb, *args, **options))
        self.end_dry_run()

    def show_estimate(self, name: str, told: Any) -> None:
        """The card of an estimate, once there is a place for what it would write."""
        if self.step is not None:
            check_place(self.step.place, told.disk or 0)
        self.show(name, told)

    def end_dry_run(self) -> NoReturn:
        """The command ends here, having made nothing."""
        if self.opened_in:
            self.note(f"opening the model took {self.opened_in:.0f} s, which comes on top")
        say("nothing was made; without --dry-run it is")
        self.finish()
        raise typer.Exit

    def end(self, step: Step) -> None:
        """The step is done and saved."""
        step.record()
        self.working.close()  # what was kept of it goes now, and not before
        self.wrote(step.place)
        self.then(step.next())

    def keep(self, step: Step, name: str, result: Any, figures: Path) -> None:
        """Saves the result of a step, prints it, and writes its table and its figures.

        Args:
            step: What made it.
            name: As `show` takes it.
            result: With a ``frame()``.
            figures: The folder of its figures, which are named after the step.
        """
        result.save(step.place)
        self.show(name, result)
        table = step.place.with_name(f"{step.place.name}.csv")
        result.frame().to_csv(table, index=False)
        self.wrote(table)
        from lens_skills.plotting.result_figures import drawn

        drawings, without = drawn({step.place.name: result})
        self.wrote(*(drawing.save(figures) for drawing in drawings))
        for why in without.values():  # no edge, say: the table has what was tested
            self.note(f"no figure: {why}")
        self.end(step)

    def finish(self) -> None:
        """Prints the one object that ``--json`` asks for."""
        if self.as_json:
            from lens_skills.cli.as_json import envelope

            said = {"results": self.results, "written": self.written, "notes": self.notes}
            print(envelope(self.name, {**self.values, **said}), flush=True)


_calls = [Call()]


def call() -> Call:
    """The command that runs."""
    return _calls[-1]


def begin_call(args: Sequence[str]) -> Call:
    """A new command that was typed."""
    _calls[:] = [Call(list(args))]
    return _calls[-1]


def command(
    app: typer.Typer,
    function: Callable[..., None],
    *,
    panel: str,
    opens: str = "",
    reads: str = "",
    makes: bool = False,
) -> None:
    """Makes a function a command: with ``--json`` and ``--debug``, and what else it needs.

    Args:
        panel: The group it stands in, in ``lens-skills --help``.
        opens: ``"model"`` where it opens one that can be named, ``"run"`` where it is a run's,
            ``"study"`` where it is a run's or a study's and can be named.
        reads: ``"table"`` where its task may be a table, whose columns are then named.
        makes: Whether it makes something that can be finished.
    """
    columns = [(name, kind, text) for name, kind, text, _ in _COLUMNS] if reads else []
    model = [*(_MODEL[1:] if opens == "run" else _MODEL if opens else ())]
    offered = [("A table of your own", one) for one in columns]
    offered += [("The model", one) for one in model]
    offered += [("The result", one) for one in ([_DRY_RUN, _AGAIN] if makes else [])]
    offered += [("The result", one) for one in _ALL]
    more = []
    for group, (name, kind, text) in offered:
        if opens in ("run", "study") and name in ("model", "implementation", "dtype"):
            text = text.split(" (default")[0].split(" Default")[0].rstrip(".")
            text = f"{text.replace('float32 (default)', 'float32')} (default: as scored)."
        flags = [_FLAGS[name]] if name in _FLAGS else []
        option = typer.Option(*flags, help=text, rich_help_panel=group)
        default = False if kind is bool else None
        more.append((name, Annotated[kind, option], default))
    kinds = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.signature(function)

    @wraps(function)
    def run(**given: Any) -> None:
        told = call()
        told.name = run_name
        _said_once(told.args, run.__annotations__)
        for name in ("as_json", "again", "dry_run", "debug"):
            setattr(told, name, bool(given.pop(name, False)))
        told.opening = {name: given.pop(name) for name, *_ in _MODEL if name in given}
        named = [(key, given.pop(name)) for name, _, _, key in _COLUMNS if reads]
        told.columns = {
            key: tuple(value) if isinstance(value, list) else value for key, value in named if value
        }
        _check_opening(told.opening)
        function(**given)
        told.finish()

    run_name = function.__name__.replace("_", "-")
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            *(one.replace(kind=kinds) for one in signature.parameters.values()),
            *(inspect.Parameter(n, kinds, default=d, annotation=a) for n, a, d in more),
        ]
    )
    run.__annotations__ = {**function.__annotations__, **{name: a for name, a, _ in more}}
    app.command(run_name, rich_help_panel=panel)(run)


def _said_once(args: Sequence[str], annotations: Mapping[str, Any]) -> None:
    """Refuses an option given twice that takes one value: the last would win without a word."""
    for name, kind in annotations.items():
        flag = f"--{name.replace('_', '-')}"
        said = sum(arg == flag or arg.startswith(f"{flag}=") for arg in args)
        if said > 1 and not re.search(r"list\[|bool", str(kind)):
            raise LensSkillsError(f"{flag} was given {said} times, and it takes one value.")


def _check_opening(opening: Mapping[str, str | None]) -> None:
    for name, known in (("implementation", IMPLEMENTATIONS), ("dtype", DTYPES)):
        choose(name, opening.get(name), known)
    device = opening.get("device")
    if device is not None and not re.fullmatch(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?", device):
        near = did_you_mean(device, ("cpu", "cuda", "mps"))
        raise LensSkillsError(f"no device {device!r}.{near} Name cpu, cuda, cuda:1 or mps.")


def check_place(place: Path, n_bytes: int) -> None:
    """Refuses a place that cannot be written, or has not room for so much.

    Raises:
        LensSkillsError: It, and which.
    """
    there = next((folder for folder in (place, *place.parents) if folder.exists()), Path("."))
    if not there.is_dir() and there != place:
        raise LensSkillsError(f"{place} cannot be written: {there} is a file.")
    if not os.access(there, os.W_OK):
        raise LensSkillsError(f"{place} cannot be written: {there} may not be changed by you.")
    free = shutil.disk_usage(there).free
    if n_bytes > free:
        raise LensSkillsError(
            f"{place} would take {n_bytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there. "
            "Make room, or write elsewhere."
        )


def choose(what: str, asked: str | None, known: Sequence[str]) -> None:
    """Refuses an option's value that is none of those known, with the nearest."""
    if asked is not None and asked not in known:
        near = did_you_mean(asked, known)
        raise LensSkillsError(f"no {what} {asked!r}.{near} There are: {', '.join(known)}.")


def open_model(**before: str | None) -> Any:
    """The model named on the command line; what is not named there is as ``before``.

    What its libraries print goes to stderr: stdout holds the result alone.
    """
    import torch

    from lens_skills.models import load_model

    said = {name: value for name, value in call().opening.items() if value is not None}
    asked = {**before, **said}
    say("opening the model …")
    began = time.perf_counter()
    with redirect_stdout(sys.stderr):
        model = load_model(
            asked.get("model"),
            implementation=asked.get("implementation"),
            dtype=getattr(torch, asked.get("dtype") or "float32"),
            device=asked.get("device"),
        )
    call().opened_in = time.perf_counter() - began
    return model


def open_run_model(run: Any) -> Any:
    """The model a run was scored with, and the features that it was read by."""
    asked = run.request
    opening = {"model": asked.model, "implementation": asked.implementation, "dtype": asked.dtype}
    return featured(open_model(**opening), asked.features)


def open_read_model(run: Any) -> Any:
    """The same, read as the run's examples were: with its soft prompt, in its chat."""
    from lens_skills.models import with_soft_prompt

    chat = run.request.options.get("chat", False)
    return with_soft_prompt(open_run_model(run), run.prompt(), chat)


def limited(task: Any, limit: int | None, seed: int) -> Any:
    """The task, or ``limit`` examples of it from as many groups as can be; see `tasks.few`."""
    from lens_skills.tasks import few

    return task if limit is None else few(task, limit, seed=seed)


def named(name: str, values: list[str] | None) -> dict[str, Any]:
    """An option that may be repeated, as a keyword argument where it was given."""
    return {name: tuple(values)} if values else {}


def is_run(folder: Path) -> None:
    """Refuses a folder that is no run, with the nearest that is one: nothing is imported for it.

    Raises:
        LensSkillsError: No ``run.json`` in it.
    """
    there = " (there is no such folder)"
    try:
        if (folder / "run.json").exists():
            return
        there = "" if folder.exists() else there
    except (OSError, ValueError):  # no right to look into it, no name of one
        pass
    raise LensSkillsError(
        f"no run in {folder}{there}.{nearest_run(folder)} Make one with "
        f"`lens-skills score TASK --out {folder}`."
    )


def nearest_run(folder: Path) -> str:
    """`` Did you mean 'x'?``, of the runs beside a folder; "" where none is called much alike."""
    beside = []
    with suppress(OSError, ValueError):
        beside = [path.name for path in folder.parent.iterdir() if (path / "run.json").exists()]
    return did_you_mean(folder.name, beside)
