"""What a user waits for before anything runs: imports, help, opening the bundled model again.

    python benchmarks/starting.py            # medians of five, each in a process of its own
    python benchmarks/starting.py --quick    # one of each: a smoke run, not a measurement

Seconds are told because they are what is promised; the ratio beside them, from the same run, is
what another machine can be held to.
"""

import shutil
import subprocess
import sys

from timing import arguments, interleaved, run_parts, table

import lens_skills as ls

COMMANDS = (
    "", "demo", "score", "select", "verify", "figures", "models", "tasks", "prompt", "generate",
)  # fmt: skip


def run(code: str) -> str:
    """What a fresh Python prints for the code."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def imports(rounds: int) -> dict[str, float]:
    """`import lens_skills` on top of `import torch`."""
    seconds = interleaved(
        {
            "torch": lambda: run("import torch"),
            "both": lambda: run("import torch, lens_skills"),
        },
        rounds=rounds,
    )
    added = seconds["both"] - seconds["torch"]
    table(
        "import lens_skills",
        {
            "added to import torch": f"{added:+.2f} s",
            "import torch alone": f"{seconds['torch']:.2f} s",
        },
    )
    return {
        "import_added_seconds": added,
        "import_both_vs_torch": seconds["torch"] / seconds["both"],
    }


def help_pages(rounds: int) -> dict[str, float]:
    """`lens-skills --help`, and that of every command."""
    shell = shutil.which("lens-skills") or f"{sys.prefix}/bin/lens-skills"

    def ask(command: str) -> None:
        words = [shell, *([command] if command else []), "--help"]
        subprocess.run(words, capture_output=True, check=True)

    seconds = interleaved({name: lambda name=name: ask(name) for name in COMMANDS}, rounds=rounds)
    table("lens-skills --help", {name or "(all)": f"{s:.2f} s" for name, s in seconds.items()})
    return {
        "help_fastest_seconds": min(seconds.values()),
        "help_slowest_seconds": max(seconds.values()),
    }


def loads(rounds: int) -> dict[str, float]:
    """Opening the bundled model again, on each implementation; imports not counted."""
    figures = {}
    ls.load_model()  # the conversion, where it was never made
    for implementation in ("hooked", "bridge"):
        code = (
            "import time, lens_skills as ls, torch, transformers, transformer_lens\n"
            "from transformer_lens.model_bridge import TransformerBridge\n"
            "start = time.perf_counter()\n"
            f"ls.load_model(implementation={implementation!r})\n"
            "print('seconds', time.perf_counter() - start)"
        )
        taken = []
        for _ in range(rounds):
            try:
                taken.append(float(run(code).split()[-1]))
            except subprocess.CalledProcessError as error:
                print(f"{implementation}: not here ({error.stderr.splitlines()[-1]})")
                break
        if taken:
            figures[f"second_load_{implementation}_seconds"] = sorted(taken)[len(taken) // 2]
    table("second load of the bundled model", {k: f"{v:.1f} s" for k, v in figures.items()})
    return figures


def main() -> None:
    asked = arguments(__doc__, quick="one of each: a smoke run, not a measurement").parse_args()
    rounds = 1 if asked.quick else 5
    run_parts({"": lambda: imports(rounds) | help_pages(rounds) | loads(rounds)}, asked)


if __name__ == "__main__":
    main()
