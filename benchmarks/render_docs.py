"""Writes the numbers of the pages from the files that measurements left, so that none is typed.

    python benchmarks/render_docs.py            # rewrites the pages
    python benchmarks/render_docs.py --check    # only says which are stale; the tests do the same

A page holds a table between ``<!-- table: NAME -->`` and ``<!-- end -->``: it is one of `TABLES`. A
number in a sentence stands between ``<!--= FILE.KEY FORMAT -->`` and ``<!--/-->``: FILE is one of
``benchmarks/results/*.json``. The demo's numbers are read from the tables beside its figures.
"""

import argparse
import csv
import json
import re
import runpy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/**/*.md", "notebooks/README.md")
# Tables of outcomes, which a page shows as they are: no numbers.
OUTCOMES = ("before", "outcomes", "why", "precisions", "tolerances")
# Keys that say how a file's numbers came about; all others are numbers.
ABOUT = ("command", "measured", "machine", "versions")
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)
VALUE = re.compile(r"(<!--= ([\w.-]+) (\S+) -->).*?(<!--/-->)", re.S)

Results = Mapping[str, Mapping[str, Any]]


def measurements(name: str) -> Callable[[Results], str]:
    """A table of measurements: what, the numbers, the command."""

    def made(results: Results) -> str:
        rows = []
        for what, shown, file in page("measurements_page")["MEASUREMENTS"][name]:
            numbers = results[file]
            rows.append(
                [what.format(**numbers), shown.format(**numbers), f"`{numbers['command']}`"]
            )
        return markdown(["what", "measured", "command"], rows)

    return made


def sources(results: Results) -> str:
    """When and where the files of results were made."""
    made: dict[tuple[str, ...], list[str]] = {}
    for name, entry in sorted(results.items()):
        made.setdefault(tuple(entry[key] for key in ABOUT[1:]), []).append(f"`{name}`")
    rows = [[*about, ", ".join(names)] for about, names in made.items()]
    return markdown([*ABOUT[1:], "files"], rows)


def attrition(path: str) -> str:
    """``46,080 neurons → 460 associated → …`` of a figure's table."""
    return " → ".join(f"{n:,.0f} {step}" for step, n in steps_of(path).items())


def steps_of(path: str) -> dict[str, float]:
    """How many neurons are left after each step, of a figure's table."""
    return {row["gate"]: float(row["count"]) for row in rows_of(path) if row["count"]}


def demo_attrition(results: Results) -> str:
    """What each gate of the demo's three studies leaves."""
    demo = results["demo_numbers"]
    words = [row["word"] for row in rows_of("figures/agreement/effect_forest-label_plural.csv")]
    support, oppose = (words[:-1].count(word) for word in ("supports", "opposes"))
    rows = [
        [
            "agreement, number of the subject",
            attrition("figures/agreement/attrition-label_plural.csv")
            + f" (**{support} support, {oppose} oppose**)",
        ],
        [
            "arithmetic, *will the answer be right?*",
            attrition("figures/arithmetic/attrition-correct.csv")
            + f": the model is right in {demo['arithmetic_right_copied']:.0%} where the answer "
            f"stands in the prompt and in {demo['arithmetic_right_elsewhere']:.0%} elsewhere, and "
            "the task's other columns predict `correct` with AUROC "
            f"{demo['arithmetic_columns_auroc']:.2f}",
        ],
        [
            "the same, given operation, operands, result, copying",
            f"46,080 neurons → {demo['arithmetic_given_associated']} associated",
        ],
    ]
    return markdown(["task and metric", "attrition"], rows)


def demo_neurons(results: Results) -> str:
    """What removing each of the demo's neurons does."""
    points = rows_of("figures/agreement/effect_against_r-label_plural.csv")
    r = {row["name"]: float(row["r"]) for row in points if row["word"]}
    rows = []
    for row in rows_of("figures/agreement/effect_forest-label_plural.csv"):
        effect, low, high, direct = (float(row[key]) for key in ("effect", "low", "high", "direct"))
        name = row["name"]
        known = name in r
        rows.append(
            [
                name if known else "all together",
                f"{r[name]:+.2f}" if known else "",
                f"{results['demo_numbers'][f'r_confirm_{name}']:+.2f}" if known else "",
                f"{effect:+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{direct:+.2f}",
                row["word"],
            ]
        )
    head = "removing it changes the log-odds of the right verb by (nats, 95 % interval)"
    return markdown(
        ["neuron", "r, explore", "r, confirm", head, "of that, direct", "verdict"], rows
    )


def demo_sets(results: Results) -> str:
    """What removing the four does, against removing matched sets."""
    bins = rows_of("figures/agreement/effect_against_controls-label_plural.csv")
    filled = [row for row in bins if row["what"] == "matched sets" and float(row["value"])]
    n = sum(float(row["value"]) for row in filled)
    low, high = (float(filled[place][end]) for place, end in ((0, "low"), (-1, "high")))
    near = [row for row in filled if float(row["low"]) > -0.1]
    n_near = sum(float(row["value"]) for row in near)
    demo = results["demo_numbers"]
    return typeset(
        f"Mean ablation at the last token, {demo['agreement_examples']} prompts of "
        f"{demo['agreement_groups']} nouns that had no part in the search, clean mean "
        f"{demo['agreement_clean']:.2f} nats; of those with an effect q ≤ "
        f"{demo['agreement_q_largest']:.3f} among two hundred other neurons of each layer. "
        f"Of {n:.0f} matched sets, {n_near:.0f} "
        f"change it by {float(near[0]['low']):+.2f} to {float(near[-1]['high']):+.2f}; all lie "
        f"between {low:+.2f} and {high:+.2f}."
    )


def in_short(results: Results) -> str:
    """The README's caption of the demo's picture."""
    left = steps_of("figures/agreement/attrition-label_plural.csv")
    forest = rows_of("figures/agreement/effect_forest-label_plural.csv")
    effect = next(float(row["effect"]) for row in forest if row["name"] == "L28N907")
    words = [row["word"] for row in forest[:-1]]
    return (
        f"*What `make demo` ends with. Of SmolLM2-135M's {left['neurons']:,.0f} MLP neurons "
        f"{left['associated']:.0f} are significantly correlated with the number of the subject, "
        f"{left['beat the control task']:.0f} beat a control task that exchanges words, "
        f"and {left['confirmed']:.0f} hold up on nouns never seen. {words.count('supports')} of "
        f"those tried support the right verb and {words.count('opposes')}, as strongly "
        f"correlated, oppose it: without L28N907 the model is better at agreement by {effect:.2f} "
        "nats.*"
    )


def strongest(results: Results) -> str:
    """What becomes of the strongest correlates, whether the nulls let them pass or not."""
    able, adds = results["verdicts_agreement"], results["verdicts_carry"]
    rows = [
        [
            f"number of the subject, \\|r\\| {able['agreement_r_lowest']:.2f}–"
            f"{able['agreement_r_highest']:.2f}",
            "SmolLM2",
            *(str(able[f"agreement_{word}"]) for word in ("supports", "opposes", "no_effect")),
        ],
        [
            f"carry of a two-digit sum, \\|r\\| up to {adds['carry_r_highest']:.2f}",
            "arithmetic-small, which adds",
            *(str(adds[f"carry_{word}"]) for word in ("supports", "opposes")),
            f"**{adds['carry_no_effect']}** (none above {adds['carry_effect_largest']} nats, "
            f"δ = {adds['carry_delta']}; nor all together)",
        ],
    ]
    return markdown(["skill", "model", "supports", "opposes", "no effect beyond δ"], rows)


def circuits(results: Results) -> str:
    """How edges are proposed, and how many of them hold."""
    numbers, starts = results["circuit"], ("L28N907", "L27N1010")
    ways = {
        "attribution": "gradient (edge attribution patching), to depth 2",
        "integrated": "integrated gradient",
        "relevance": "relevance (patterns, scales and gates held)",
        "alone": "attribution patching alone, into and out of the neuron",
    }

    def both(how: str, what: str, form: str = ".0f") -> str:
        return "; ".join(f"{numbers[f'circuit_{start}_{how}_{what}']:{form}}" for start in starts)

    def left(start: str, how: str) -> str:
        share, low, high = (
            numbers[f"circuit_{start}_{how}_unexplained{end}"] for end in ("", "_low", "_high")
        )
        return f"{share:.0%} [{low:+.0%}, {high:+.0%}]"

    rows = []
    for how, text in ways.items():
        random = [
            f"{numbers[f'circuit_{start}_{how}_random_confirmed']:.0f} of "
            f"{numbers[f'circuit_{start}_{how}_random']:.0f}"
            for start in starts
        ]
        rows.append(
            [
                text,
                both(how, "edges"),
                both(how, "confirmed"),
                both(how, "negligible"),
                "; ".join(random),
                "; ".join(left(start, how) for start in starts),
                both(how, "seconds"),
            ]
        )
    head = [
        "edges proposed by",
        f"edges: {'; '.join(starts)}",
        "confirmed",
        "negligible",
        "random edges confirmed",
        "unexplained by all tested",
        "seconds",
    ]
    return markdown(head, rows)


def agreement_grades(results: Results) -> str:
    """What becomes of the neurons that move agreement, by the number of nouns."""
    numbers = results["agreement_grades"]
    counts = sorted({int(key.split("_")[1]) for key in numbers if key.startswith("groups_")})
    columns = {
        "associated": "associated",
        "beat the control task": "beat_control",
        "beyond 1 % of the clean metric": "large",
        "of these grade A": "large_A",
        "random neurons tried": "random",
        "of these beyond 1 %": "random_beyond",
    }
    rows = [
        [str(n), *(f"{numbers[f'groups_{n}_{key}']:,.0f}" for key in columns.values())]
        for n in counts
    ]
    return markdown(["nouns in explore", *columns], rows)


def leaderboard(results: Results) -> str:
    """Hits of each method over all tasks, and on two of them."""
    rows = rows_of("figures/leaderboard/leaderboard.csv")
    names = [row["method"] for row in rows]
    hits = [f"{float(row['hits']):.0f} of {float(row['n']):.0f}" for row in rows]
    kinds = {
        "with an effect, all six tasks": hits,
        "agreement, number": [f"{float(row['agreement_plural']):.0%}" for row in rows],
        "agreement, confidence": [f"{float(row['agreement_confidence']):.0%}" for row in rows],
    }
    return markdown(
        ["method", *kinds],
        [[name, *row] for name, *row in zip(names, *kinds.values(), strict=True)],
    )


def planted_roles(results: Results) -> str:
    """Which planted neurons each method names, and how many of those it names act."""
    numbers = results["planted_methods"]
    k = numbers["planted_methods_k"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in ("pearson", "smd", "f", "auroc", "information", "predictivity", "l1", "lape",
                 "taylor", "probeless", "gradient"):  # fmt: skip
        counts = [
            str(numbers[f"planted_methods_{role}_{name}"])
            for role in ("skill", "decoy", "writer", "shortcut")
        ]
        oppose = numbers.get(f"planted_methods_opposes_{name}", 0)
        hits = f"{numbers[f'planted_methods_hits_{name}']} of {k}"
        hits += f", {oppose} of them oppose" if oppose else ""
        rows.setdefault((*counts, hits), []).append(name)
    lines = [[", ".join(names), *values] for values, names in rows.items()]
    for name, text in (("rotated", "rotated basis"), ("random", "random")):
        hits = (
            f"{numbers[f'planted_methods_hits_{name}']} of {numbers[f'planted_methods_n_{name}']}"
        )
        lines.append([text, "–", "–", "–", "–", hits])
    head = ["method", "skill neurons", "decoys", "writers", "shortcuts", "with an effect"]
    return markdown(head, lines)


def calibration(results: Results) -> str:
    """How often what is printed is wrong in simulation, before and now."""
    numbers = results["calibration"]
    rows = page("calibration_rows")["ROWS"]

    def rate(key: str) -> str:
        share, low, high = (numbers.get(f"{key}{end}") for end in ("", "_low", "_high"))
        return "–" if share is None else f"{share:.3f} [{low:.3f}, {high:.3f}]"

    lines = []
    for row in rows:
        before, now = (rate(f"{row.key}_{when}") for when in ("before", "now"))
        n = numbers.get(f"{row.key}_now_n", numbers.get(f"{row.key}_before_n", 0))
        share = numbers.get(f"{row.key}_now")
        shown = f"**{now}**" if share is not None and row.holds(share) else now
        lines.append([row.what, row.bar, before, shown, f"{n:,} {row.of or 'data sets'}"])
    return markdown(["how often", "bar", "before", "now", "of"], lines)


def neighbours(results: Results) -> str:
    """The neighbouring papers on trial; their rows are in files of their own."""
    made = page("neighbours_page")
    head, *rows = made["neighbours"](made["read_neighbours"]())
    return markdown(head, rows)


def table(name: str, results: Results) -> str:
    """One of `TABLES`, or ``families-counts``: `counts` of ``families_page.py``, beside this."""
    if name in TABLES:
        return TABLES[name](results)
    file, _, inner = name.partition("-")
    head, *rows = page(f"{file}_page")[inner](results.get(file, {}))
    return markdown(head, rows)


@cache
def page(name: str) -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))


TABLES: dict[str, Callable[[Results], str]] = {
    **{name: measurements(name) for name in page("measurements_page")["MEASUREMENTS"]},
    "sources": sources,
    "in-short": in_short,
    "demo-attrition": demo_attrition,
    "demo-neurons": demo_neurons,
    "demo-sets": demo_sets,
    "strongest": strongest,
    "agreement-grades": agreement_grades,
    "circuits": circuits,
    "calibration": calibration,
    "leaderboard": leaderboard,
    "neighbours": neighbours,
    "planted-roles": planted_roles,
}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table, with a true minus sign before numbers."""
    lines = [head, ["---"] * len(head), *rows]
    return typeset("\n".join("| " + " | ".join(line) + " |" for line in lines))


def typeset(text: str) -> str:
    """True minus signs before numbers, and a space before the percent sign."""
    return re.sub(r"(?<=\d)%", " %", re.sub(r"(?<![\w)-])-(?=[\d.])", "−", text))


def rows_of(path: str) -> list[dict[str, str]]:
    """A CSV beside a figure."""
    with (ROOT / path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Every file of results by its name, but for those of the neighbours.

    Raises:
        ValueError: A file that does not say how its numbers came about, or holds something else.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem.startswith(page("neighbours_page")["PREFIX"]):
            continue
        entry = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ABOUT if not entry.get(key)]
        if missing:
            raise ValueError(f"{path.name} lacks {', '.join(missing)}")
        known = (*ABOUT, *(OUTCOMES if path.stem == "families" else ()))
        odd = [key for key, value in entry.items() if key not in known and not is_number(value)]
        if odd:
            raise ValueError(f"{path.name}: {', '.join(odd)} is no number")
        found[path.stem] = entry
    return found


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def render(text: str, results: Results) -> str:
    """A page with its tables and numbers made anew."""

    def number(found: re.Match[str]) -> str:
        name, _, key = found[2].rpartition(".")  # a model's name may hold dots
        return f"{found[1]}{typeset(format(results[name][key], found[3]))}{found[4]}"

    text = TABLE.sub(lambda found: f"{found[1]}{table(found[2], results)}\n{found[3]}", text)
    return VALUE.sub(number, text)


def pages() -> list[Path]:
    """The pages with numbers that are measured."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def stale(results: Results) -> dict[Path, str]:
    """Pages that differ from what the results say, and what they should be."""
    found = {}
    for path in pages():
        text = path.read_text(encoding="utf-8")
        wanted = render(text, results)
        if wanted != text:
            found[path] = wanted
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    asked = parser.parse_args()
    found = stale(read_results())
    for path, text in found.items():
        if not asked.check:
            path.write_text(text, encoding="utf-8")
        print(f"{'stale' if asked.check else 'written'}: {path.relative_to(ROOT)}")
    raise SystemExit(1 if asked.check and found else 0)


if __name__ == "__main__":
    main()
