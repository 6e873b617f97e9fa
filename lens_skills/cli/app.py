"""The commands of the shell: each parses, calls the API and prints."""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lens_skills.cli.analyses import circuit, compare_methods, explain, regulators, shortcuts
from lens_skills.cli.console import (
    Call,
    begin_call,
    call,
    command,
    limited,
    open_model,
)
from lens_skills.cli.exit_codes import (
    BUG,
    CUT_OFF,
    FAILED,
    MISTYPED,
    received,
    stopped_code,
)
from lens_skills.cli.export_command import export
from lens_skills.cli.finding import score, select, study
from lens_skills.cli.intervening import audit, dose, sweep, verify
from lens_skills.cli.publishing_commands import check, publish
from lens_skills.cli.report_command import report
from lens_skills.cli.run_figures import figures
from lens_skills.cli.shared_options import Precision, Seed
from lens_skills.cli.showing import show
from lens_skills.cli.soft_prompts import generate, prompt
from lens_skills.cli.terminal import make_printable, say
from lens_skills.errors import LensSkillsError
from lens_skills.progress import close_all
from lens_skills.settings import config

# Typer brings a click of its own since 0.2x, so that what it raises is found through it.
UsageError: Any = typer.BadParameter.__mro__[1]
RED, YELLOW = 31, 33
PACKAGES = ("lens-skills", "torch", "transformers", "transformer-lens", "numpy", "scipy")


class Commands(TyperGroup):
    """The commands; whatever becomes of one, it ends with a sentence and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is typed first, with what follows it."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            longer = [name for name in self.commands if name.startswith(args[0])]
            nearest = [*longer, *get_close_matches(args[0], self.commands)][:1]
            raise UsageError(
                f"no command {args[0]!r}. "
                + "".join(f"Did you mean {name!r}? " for name in nearest)
                + f"`lens-skills --help` lists all {len(self.commands)}."
            )
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Runs the command that is typed, and leaves with its exit code."""
        typed = list(sys.argv[1:] if args is None else args)
        make_printable(sys.stdout, sys.stderr)
        told = begin_call(typed)
        told.as_json, told.debug = "--json" in typed, "--debug" in typed
        shown = warnings.showwarning
        warnings.showwarning = _as_note  # type: ignore[assignment]
        try:
            code = _ended(lambda: self._run(typed or ["--help"]), told)
        finally:
            warnings.showwarning = shown
            begin_call([])  # what runs from here on was not typed
        raise SystemExit(code)

    def _run(self, typed: list[str]) -> int:
        try:
            with self.make_context("lens-skills", typed) as ctx:
                self.invoke(ctx)
            sys.stdout.flush()
        except typer.Exit as left:
            return left.exit_code
        return 0


def _ended(run: Callable[[], int], told: Call) -> int:
    """The exit code of a command; what went wrong is said, under ``--json`` on stdout too."""
    debug = told.debug or bool(os.environ.get("LENS_SKILLS_DEBUG"))
    try:
        with told.working:
            return run()
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "lens-skills"
        told.name = path.removeprefix("lens-skills").strip()
        return _failed("usage", error.format_message(), MISTYPED, hint=f"{path} --help")
    except LensSkillsError as error:
        if received:  # raised by what Ctrl-C broke off
            return _stopped(told)
        if debug:
            traceback.print_exc()
        return _failed("error", str(error), FAILED)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | typer.Abort) or received:
            return _stopped(told)
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ESHUTDOWN):
            # Who reads has read enough; what Python flushes when it ends goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return CUT_OFF
        if not isinstance(error, Exception):
            raise
        if debug:
            traceback.print_exc()
        return _unexpected(error)


def _stopped(told: Call) -> int:
    code = stopped_code()
    close_all()
    said = told.step.kept() if told.step else "stopped before anything was begun. To begin again:"
    say(f"\nlens-skills: {said}\n  {told.command}", colour=YELLOW)
    return _failed("interrupted", said, code, hint=told.command, silent=True)


def _unexpected(error: Exception) -> int:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "Fewer examples at a time need less: lens-skills --batch-size 4 …"
        return _failed("memory", f"out of memory ({text}). {hint}", FAILED)
    if isinstance(error, OSError) and error.filename is not None:
        return _failed("file", f"{error.filename}: {error.strerror}.", FAILED)
    return _failed(
        "bug",
        f"this is a bug in lens-skills: {type(error).__name__}: {text}. Please report it, with "
        "what the same command says with --debug at its end and with `lens-skills --version`.",
        BUG,
    )


def _failed(kind: str, message: str, code: int, *, hint: str = "", silent: bool = False) -> int:
    told = call()
    close_all()
    if not silent:
        see = f" See `{hint}`." if hint and hint not in message else ""
        say(f"lens-skills: {message}{see}", colour=RED)
    if told.as_json:
        from lens_skills.cli.as_json import envelope

        error = {"kind": kind, "message": message, "hint": hint or None}
        print(envelope("error", {"command": told.name or None, "error": error, "exit_code": code}))
    return code


def _as_note(message: Any, category: type[Warning], filename: str, *rest: Any) -> None:
    """What the package warns of is a note; what its libraries warn of is not the user's."""
    if "lens_skills" in Path(filename).parts and issubclass(category, RuntimeWarning | UserWarning):
        call().note(str(message))
    elif call().debug:
        say(f"{filename}: {category.__name__}: {message}")


app = typer.Typer(
    cls=Commands, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)


def _version(asked: bool | None) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version
        from platform import python_version

        own = sys.modules["lens_skills"].__version__  # of the code that runs
        print(f"python {python_version()}\nlens-skills {own}")
        for package in PACKAGES[1:]:
            try:
                print(f"{package} {version(package)}")
            except PackageNotFoundError:
                print(f"{package} is not installed")
        raise typer.Exit


@app.callback()
def options(
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per forward pass (default: each command's own).")
    ] = None,
    progress: Annotated[
        bool | None,
        typer.Option(help="Show progress: a bar; in a pipe or a log one line a minute on stderr."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="local, or ray: passes divided among workers (RAY_ADDRESS, else here)."),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Under ray: processes that each hold the model.")
    ] = None,
    worker_cpus: Annotated[
        int | None, typer.Option(help="Under ray: threads of each (default: its share of cores).")
    ] = None,
    worker_gpus: Annotated[
        float | None, typer.Option(help="Under ray: GPUs of each (default: 1 where there are any).")
    ] = None,
    version: Annotated[
        bool | None,
        typer.Option("--version", is_eager=True, callback=_version, help="Print versions."),
    ] = None,
) -> None:
    """Find, confirm, test and draw the neurons of a language model that carry a skill.

    These options change no result; they stand before the command.

    The result goes to stdout, all else to stderr. With `--json` after a command, stdout is one
    object: `{"format": "lens-skills/COMMAND", "version": 1, …}`; where it fails,
    `{"format": "lens-skills/error", …, "error": {"kind", "message", "hint"}}`.

    Exit codes: 0 done (or finished before), 1 cannot be done as asked, 2 mistyped, 70 a bug,
    130 Ctrl-C, 143 told to end.
    """
    config(
        batch_size=batch_size,
        progress=progress,
        engine=engine,
        workers=workers,
        worker_cpus=worker_cpus,
        worker_gpus=worker_gpus,
    )


def demo(
    out: Annotated[Path, typer.Option(help="Where figures and tables go.")] = Path("figures/demo"),
    seed: Seed = 0,
) -> None:
    """The whole pipeline on a skill the model has and on one it mostly has not.

    Interrupted, the same command goes on after the last study that was finished.
    """
    from lens_skills.cli.demo import run_demo

    run_demo(call(), out, seed=seed)


def models(
    hooks: Annotated[
        bool, typer.Option("--hooks", help="List the hook points of a model's blocks.")
    ] = False,
) -> None:
    """What can be opened here, and how."""
    from lens_skills.models import as_adapter, describe_openable

    if hooks:
        from lens_skills.activations import site_names

        names = site_names(as_adapter(open_model()).hook_names())
        call().show_lines("hooks", names, names)
        return
    rows = [[row.what, row.name, row.how, row.state] for row in describe_openable()]
    call().show_table("models", ["what", "name", "how", "here"], rows)


def tasks(
    task: Annotated[str | None, typer.Argument(help="Show this task instead of the list.")] = None,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Can the model do it at all?")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Examples of the preflight.")] = 200,
    precision: Precision = None,
) -> None:
    """The tasks that come with the toolkit, or one task: its columns and first examples."""
    from lens_skills.tasks import GENERATORS, open_task

    told = call()
    if task is None:
        if preflight:
            raise UsageError("--preflight is of one task. Name it: lens-skills tasks TASK …")
        rows = [[name, text] for name, text in GENERATORS.items()]
        rows.append(
            ["PATH", "a BIG-bench JSON file or folder, or a CSV, TSV, JSONL or Parquet file"]
        )
        told.show_table("tasks", ["task", "what it asks"], rows)
        return
    opened = open_task(task)
    first = [{"prompt": one.prompt, "answer": one.answer, "foil": one.foil} for one in opened[:3]]
    about = {
        "name": opened.name,
        "n_examples": len(opened),
        "n_groups": len(set(opened.groups)),
        "columns": list(opened.column_names),
        "examples": first,
    }
    lines = [] if preflight else ["columns: " + ", ".join(opened.column_names)]
    if not preflight:
        lines += [f"{one['prompt']!r} → {one['answer']!r}, not {one['foil']!r}" for one in first]
    told.show_lines("task", about, [repr(opened), *lines])
    if preflight:
        asked = limited(opened, limit, seed=0)
        told.show("preflight", asked.preflight(open_model(), precision=precision))


START, STEPS, MORE = "Start here", "Step by step", "Ask more of a run"
LOOK, PROMPTS = "Look at what was found", "Prompts and texts"

# In the order a newcomer needs them, which is that of `lens-skills --help`.
command(app, demo, panel=START, opens="model", makes=True)
command(app, tasks, panel=START, opens="model")
command(app, models, panel=START, opens="model")
command(app, study, panel=START, opens="model", reads="table", makes=True)
command(app, score, panel=STEPS, opens="model", reads="table", makes=True)
for step in (select, verify):
    command(app, step, panel=STEPS, opens="run", makes=True)
for analysis in (explain, circuit, sweep, dose, shortcuts, regulators, compare_methods):
    command(app, analysis, panel=MORE, opens="run", makes=True)
command(app, audit, panel=MORE, opens="model", reads="table", makes=True)
command(app, show, panel=LOOK)
command(app, figures, panel=LOOK)
command(app, report, panel=LOOK, opens="model")
command(app, export, panel=LOOK)
command(app, publish, panel=LOOK, opens="study")
command(app, check, panel=LOOK, opens="model")
for made in (prompt, generate):
    command(app, made, panel=PROMPTS, opens="model", makes=True)
