"""The script ``lens-skills``: ready for Ctrl-C before anything else is imported."""

import os
import sys
from contextlib import suppress

from lens_skills.cli.exit_codes import catch_signals, received, stopped_code


def main() -> None:
    """Runs the command of ``sys.argv``; ends the process with its exit code."""
    try:
        catch_signals()
        from lens_skills.cli.app import app

        app(prog_name="lens-skills")
    except SystemExit as left:
        if not received:
            raise
        _leave(int(left.code or 0))
    except BaseException:
        if not received:
            raise
        print("lens-skills: stopped before anything was begun.", file=sys.stderr)
        _leave(stopped_code())


def _leave(code: int) -> None:
    """Ends at once: Python itself may end by SIGINT where Ctrl-C fell into an ``exec``."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
