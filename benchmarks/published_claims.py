"""Published claims about neurons, each put on trial: claim, recipe, what the trial says.

    python benchmarks/published_claims.py [--model NAME]

Follows each recipe on one half of the data, edits what it names on the other, beside random neurons
of the same layers and on other tasks. Finished parts are kept under runs/claims and read back; the
page is figures/claims/<model>.md, with one table (CSV) and one picture for each claim.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
from asked_model import add_model, opened, slug
from claims.recipes import CLAIMS, PARTS, QUICK, Finding, Sizes
from leaderboard_page import markdown
from pictures import keep

import lens_skills as ls

PUBLIC = {"qwen2.5-coder-0.5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct"}
OUT, RUNS = Path("figures/claims"), Path("runs/claims")
SEED = 0


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    parser.add_argument("--quick", action="store_true", help="a smoke run: no result")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), help="some of the claims")
    parser.add_argument("--out", type=Path, default=OUT, help="where the page goes")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where finished parts are kept")
    return parser.parse_args()


def run(name: str, model: Any, folder: Path, pictures: Path, sizes: Sizes) -> dict[str, Any]:
    """One claim's finding, as it is written down; read back where it is there."""
    file, kept = name.replace(" ", "_"), kept_at(folder, name)
    if kept.exists() and (pictures / f"{file}_table.csv").exists():
        print(f"{name}: read back")
        return json.loads(kept.read_text(encoding="utf-8"))
    began = time.process_time()
    found: Finding = PARTS[name](model, sizes, SEED)
    pictures.mkdir(parents=True, exist_ok=True)
    if found.drawing is not None:
        keep(found.drawing, pictures / file)
    found.table.to_csv(pictures / f"{file}_table.csv", index=False, float_format="%.5g")
    row = {
        "word": found.word,
        "says": found.says,
        "picture": found.drawing is not None,
        "minutes": (time.process_time() - began) / 60,
    }
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{name}: {found.word}. {found.says} ({row['minutes']:.1f} min)", flush=True)
    return row


def kept_at(folder: Path, name: str) -> Path:
    """Where a claim's finding is kept."""
    return folder / f"{name.replace(' ', '_')}.json"


def page(rows: dict[str, dict[str, Any]], name: str, pictures: Path, quick: bool) -> str:
    """Claim, recipe and what the trial says; then each with its table and picture."""
    board = pd.DataFrame(
        [
            [key, CLAIMS[key].says, CLAIMS[key].source, f"**{row['word']}**"]
            for key, row in rows.items()
        ],
        columns=["", "claim", "source", f"on {name}"],
    )
    untried = [key for key in CLAIMS if key not in rows]
    minutes = sum(row["minutes"] for row in rows.values())
    option = f" --model {PUBLIC[pictures.name]}" if pictures.name in PUBLIC else ""
    parts = [
        f"# Published claims about neurons, on trial in {name}",
        f"Written by `python benchmarks/published_claims.py{option}`; seed {SEED}, "
        f"{minutes:.0f} minutes of processor time.",
        *(["**A smoke run on a few examples: no result.**"] if quick else []),
        "A claim made on one model need not hold in another, and a trial in one small model "
        "refutes nobody: it says what following the recipe gives *here*. Each recipe is followed "
        "on one part of the data and what it names is edited on the other; what counts as holding "
        "was written down before the runs and stands below. For time, and after a smoke run of "
        "the languages only, random sets were cut from 39 to 19 and each language to eight "
        "sentences; wordings of the capitals were replaced after their probabilities, and no "
        "effect, had been seen.",
        markdown(board),
        *([f"Not run on this model yet: {', '.join(untried)}."] if untried else []),
    ]
    for key, row in rows.items():
        claim, file = CLAIMS[key], key.replace(" ", "_")
        table = pictures / f"{file}_table.csv"
        parts += [
            f"## {key.capitalize()}: {row['word']}",
            f"**Claim** ({claim.source}). {claim.says}",
            f"**Recipe.** {claim.recipe.capitalize()}.",
            f"**Holds** {claim.rule}.",
            f"**The trial.** {row['says']}",
        ]
        if table.stat().st_size > 1:
            parts.append(markdown(pd.read_csv(table)))
        if row["picture"]:
            parts.append(f"![{key}]({pictures.name}/{file}.png)")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Tries the claims and writes the page."""
    asked = arguments()
    ls.config(progress=False)
    model, short = opened(asked.model), slug(asked.model)
    runs = asked.runs / "quick" if asked.quick else asked.runs
    sizes, rows = QUICK if asked.quick else Sizes(), {}
    for name in PARTS:
        if not asked.only or name in asked.only or kept_at(runs / short, name).exists():
            rows[name] = run(name, model, runs / short, asked.out / short, sizes)
    name = {"smollm2": "SmolLM2-135M-Instruct", "qwen2.5-coder-0.5b":
            "Qwen2.5-Coder-0.5B-Instruct (a 4-bit GGUF)"}.get(short, short)  # fmt: skip
    path = asked.out / f"{short}.md"
    path.write_text(page(rows, name, asked.out / short, asked.quick), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
