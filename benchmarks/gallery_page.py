"""The tables of ``docs/gallery.md``: every kind of figure, what it answers, and its call.

    python benchmarks/gallery_page.py    # draws what no committed figure shows, on planted results

A picture is the first committed figure of its kind; of a kind without one, a small planted result
in ``figures/gallery``.
"""

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lens_skills.plotting import figures, style
from lens_skills.plotting.drawing import DRAWN

sys.path.append(str(Path(__file__).resolve().parent))
from redraw_figures import FIGURES, ROOT, committed, kind_of

GALLERY = FIGURES / "gallery"
# The question each answers, in the order of the page.
QUESTIONS = {
    "scores": {
        "r_distribution": "Do any neurons go with the metric more than chance allows, and more "
        "than directions that are no neurons?",
        "layer_profile": "In which layers are they?",
        "correlation_by_position": "In which layers, and at which token?",
        "metric_heatmap": "Do the strongest go with this metric alone, or with others too?",
        "paired_intervals": "Does it help, on each of several tasks?",
        "compare_scores": "Are they the same in two passes: other prompts, other examples?",
        "reliability": "Does the model's confidence mean what it says?",
        "confidence_against_correctness": "Does a larger margin, or log-probability, mean a better "
        "chance to be right?",
        "number_curves": "How does a number of a benchmark go with a size, a layer or a share?",
        "cost_curves": "What does a pass cost, against examples, tokens, layers and width, and "
        "what would be the least?",
    },
    "neurons": {
        "attrition": "How many neurons are left after each step, and what speaks for each?",
        "activation_scatter": "How does one neuron's activation go with the metric?",
        "activation_by_class": "How does it differ between classes?",
        "activation_map": "Which combinations of two features is a neuron active on?",
        "feature_matrix": "What about the input explains what each neuron does?",
        "description_scores": "Does a sentence say on which unseen texts a neuron fires?",
        "redundancy": "Which neurons do the same?",
        "memorisation": "Do neurons take few values that they share, or many of their own?",
        "minimal_set": "How few neurons tell it as well as all of them, and in which layers?",
        "dissection": "How much is kept when only one of like neurons acts?",
        "read_outs": "Does a count over tokens tell more than a mean or a maximum?",
        "sparse_probe": "How many neurons does it take to tell the label?",
        "segmentation": "Where in a text does one skill end and the next begin?",
        "skill_matrix": "Do several skills use the same neurons?",
        "stability": "Would another half of the examples have found the same?",
    },
    "effects": {
        "effect_against_r": "Do the neurons that correlate matter to the model?",
        "effect_forest": "What does removing each neuron do, and how certain is that?",
        "effect_against_controls": "Is the effect larger than that of other neurons, or sets, that "
        "were matched?",
        "dose_response": "Does steering by more do more, and what does it break?",
        "scaling_curve": "Are neurons that tell right answers from wrong ones levers?",
        "damage_matrix": "Do a skill's neurons serve it alone?",
        "accuracy_matrices": "Which of the tasks learned in turn is still there after the others?",
        "forgetting": "Is less forgotten where a task's own neurons alone are trained?",
        "shortcut_effects": "Does a neuron act where only the shortcut is there?",
        "confidence_regulation": "Does a neuron change the confidence and not the answer?",
        "method_comparison": "Which way of ranking names neurons that have an effect?",
        "leaderboard": "And over several tasks?",
    },
    "circuits": {
        "circuit_graph": "Through which components does it act?",
        "faithfulness": "How much of the model does the circuit alone account for?",
        "neuron_circuits": "How many of the strongest neurons carry the answer alone?",
    },
    "prompts": {
        "learning_curves": "Did the soft prompt learn, and does it generalise?",
    },
}


@cache
def shown() -> dict[str, Path]:
    """Of each kind a committed picture: real results before planted ones."""
    found: dict[str, Path] = {}
    for path in sorted(committed(), key=lambda path: (GALLERY in path.parents, path)):
        found.setdefault(kind_of(path), path.with_suffix(".png"))
    return found


def call(kind: str) -> str:
    """How it is called, with the arguments that it needs."""
    function = getattr(figures, kind, None)
    if function is None:
        return ""
    needed = [
        name if value.kind is value.POSITIONAL_OR_KEYWORD else f"{name}=…"
        for name, value in inspect.signature(function).parameters.items()
        if value.default is value.empty
    ]
    return f"`figures.{kind}({', '.join(needed)})`"


def _table(section: str) -> list[list[str]]:
    rows = [["figure", "what it answers", "call"]]
    for kind, question in QUESTIONS[section].items():
        if kind in shown():
            place = shown()[kind].relative_to(ROOT)
            words = kind.replace("_", " ")
            rows.append([f"![{words}](../{place})", question, call(kind)])
    return rows


def colours(results: Mapping[str, Any]) -> list[list[str]]:
    """What each colour means."""
    meanings = {
        "SUPPORTS": "removing it lowers the metric",
        "OPPOSES": "removing it raises the metric",
        "MIXED": "now the one, now the other",
        "COMPENSATED": "a direct effect that later layers undo",
        "DATA": "what is measured, where it is neither an effect nor a null",
        "OTHERS": "what it stands among: other neurons, matched sets",
        "CHANCE": "dashed: chance, and the threshold of the permutations",
        "RANDOM": "random directions, random neurons",
        "CONTROL_TASK": "the control task",
        "DAMAGE": "harm elsewhere",
    }
    rows = [[getattr(style, role), meaning] for role, meaning in meanings.items()]
    beside = ("basis-privileged", "confirmed as predicted")
    evidence = " < ".join(step for step in style.EVIDENCE if step not in beside)
    steps = ", ".join(c for step, c in style.EVIDENCE.items() if step not in beside)
    rows.append([steps, f"evidence: {evidence}"])
    rows += [[style.EVIDENCE[step], step] for step in beside]
    rows.append([", ".join(c for c, _, _ in style.SERIES), "seeds, methods, classes: no meaning"])
    return [["colour", "meaning"], *rows]


def scores(results: Mapping[str, Any]) -> list[list[str]]:
    """Figures of a pass."""
    return _table("scores")


def neurons(results: Mapping[str, Any]) -> list[list[str]]:
    """Figures of what was selected."""
    return _table("neurons")


def effects(results: Mapping[str, Any]) -> list[list[str]]:
    """Figures of interventions."""
    return _table("effects")


def circuits(results: Mapping[str, Any]) -> list[list[str]]:
    """Figures of circuits."""
    return _table("circuits")


def prompts(results: Mapping[str, Any]) -> list[list[str]]:
    """Figures of soft prompts."""
    return _table("prompts")


def main() -> None:
    """Draws the kinds that no committed figure shows."""
    sys.path.append(str(ROOT))
    from tests.plotting.kinds import KINDS

    for old in GALLERY.glob("*"):
        old.unlink()
    shown.cache_clear()
    for kind in sorted(set(DRAWN) - set(shown())):
        drawing = KINDS[kind]()
        for suffix in ("png", "csv", "json"):
            drawing.savefig(GALLERY / f"{kind}.{suffix}")
        print(f"figures/gallery/{kind}.png")


if __name__ == "__main__":
    main()
