"""What `make demo` found, as numbers for the pages; its tables beside the figures say the rest.

make demo
python benchmarks/demo_numbers.py --save
"""

from pathlib import Path

from timing import arguments, run_parts

import lens_skills as ls


def numbers(folder: Path) -> dict[str, float]:
    """Of the three studies that the demo saves."""
    able, lacks, given = (
        ls.load(folder / name / "study")
        for name in ("agreement", "arithmetic", "arithmetic-given-surface")
    )
    confirmed = able.selection.frame().set_index(["layer", "neuron"])["r_confirm"]
    verdict, copying = able.verdict, lacks.preflight.copying
    tried = {ruling.name for ruling in verdict.singles}
    found = {
        f"r_confirm_L{layer}N{neuron}": r
        for (layer, neuron), r in confirmed.items()
        if f"L{layer}N{neuron}" in tried
    }
    return found | {
        "agreement_examples": len(verdict.effects.example_ids),
        "agreement_groups": len(set(verdict.effects.groups)),
        "agreement_clean": float(verdict.effects.clean.mean()),
        "agreement_q_largest": max(verdict[name].q for name in verdict.causal),
        "arithmetic_right_copied": copying["inside"],
        "arithmetic_right_elsewhere": copying["outside"],
        "arithmetic_columns_auroc": lacks.preflight.predicted["correct"],
        "arithmetic_given_associated": given.selection.attrition["associated"],
    }


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("figures/demo"))
    asked = parser.parse_args()
    run_parts({"": lambda: numbers(asked.folder)}, asked)
