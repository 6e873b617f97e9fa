"""The script ``lens-skills``: ready for Ctrl-C before anything else is imported."""

import sys

from lens_skills.cli.exit_codes import catch_signals, received, stopped_code


def main() -> None:
    """Runs the command of ``sys.argv``; ends the process with its exit code."""
    try:
        catch_signals()
        from lens_skills.cli.app import app

        app(prog_name="lens-skills")
    except SystemExit:
        raise
    except BaseException:
        if not received:
            raise
        print("lens-skills: stopped before anything was begun.", file=sys.stderr)
        raise SystemExit(stopped_code()) from None
