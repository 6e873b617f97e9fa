"""The neurons behind the texts of `skill_mix`: before the first word, and on the words."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from page import Page, funnel, kept
from skill_mix_texts import DONE
from skill_mix_verdicts import CONFIDENCE, own_confidence, own_text

import lens_skills as ls
from lens_skills.activations import ActivationTable
from lens_skills.generation import Graded, capture_text
from lens_skills.models import with_soft_prompt
from lens_skills.scoring import Scores
from lens_skills.stats.effect_tests import FEWEST_GROUPS

LEAST = 10  # texts with and without a skill that it takes to look for its neurons


class Read:
    """Activations of all texts of one prompt, on disk, and their splits by topic."""

    def __init__(self, table: Any, graded: Graded, parts: Sequence[set[str]], position: Any):
        self.table, self.position = table, position
        task = graded.task()
        held = {example.id for example, tokens in zip(graded.examples, graded.tokens, strict=True)
                if tokens}  # fmt: skip
        self.explore, self.confirm, self.intervene = (
            ls.Task(task.name, [e for e in task if e.group in part and e.id in held], name)
            for name, part in zip(("explore", "confirm", "intervene"), parts, strict=True)
        )

    def scores(self, folder: Path, metrics: dict[str, str], given: Sequence[str]) -> Scores:
        return kept(
            folder, Scores,
            lambda: ls.score(
                self.table, self.explore, metrics=metrics, position=self.position, given=given,
                n_rotations=1,
            ),
        )  # fmt: skip

    def funnel(self, found: Scores, name: str, metric: str, given: Sequence[str] = ()):
        checked = ls.score(
            self.table, self.confirm, metrics={name: metric}, position=self.position, given=given,
            neurons=found[name].top(200),
        )  # fmt: skip
        return funnel(found[name], checked[name])


def usable(read: Read, skills: Sequence[str]) -> list[str]:
    """Skills with texts enough on both sides, most balanced first."""
    kept = {}
    for skill in skills:
        counts = [np.bincount(part.column(skill).astype(int), minlength=2).min()
                  for part in (read.explore, read.confirm)]  # fmt: skip
        if counts[0] >= LEAST and counts[1] >= LEAST // 2:
            kept[skill] = counts[0]
    return sorted(kept, key=lambda skill: -kept[skill])


def before(
    folder: Path, model: Any, prompt: Any, graded: Graded, parts: Any, n_vectors: int
) -> Read:
    """What is there before the first word is drawn."""
    position = list(range(-n_vectors, 0))
    task, path = graded.task(), folder / "activations before"
    table = (
        ls.capture(with_soft_prompt(model, prompt), task, path, position=position)
        if not path.exists()
        else ActivationTable.load(path)
    )
    return Read(table, graded, parts, position)


def on_text(folder: Path, model: Any, prompt: Any, graded: Graded, parts: Any) -> Read:
    """What is there while the text is read again, averaged over its tokens."""
    path = folder / "activations on the text"
    table = (
        capture_text(model, graded, path, prompt=prompt)
        if not path.exists()
        else ActivationTable.load(path)
    )
    return Read(table, graded, parts, "mean")


def neurons(
    page: Page,
    model: Any,
    prompts: dict[str, Any],
    texts: dict[str, Graded],
    skills: Sequence[str],
    given: Namespace,
) -> None:
    """Scores before the first word and on the words, the matrix of skills, and the verdicts."""
    runs = given.runs / "skill_mix"
    topics = list(dict.fromkeys(example.group for example in texts["trained"].examples))
    quarter = max(FEWEST_GROUPS, len(topics) // 4)
    explored, rest = topics[: -2 * quarter], topics[-2 * quarter :]
    parts = [set(explored), set(rest[0::2]), set(rest[1::2])]
    reads = {
        name: before(runs / f"{name} read", model, prompt, texts[name], parts, given.vectors)
        for name, prompt in prompts.items()
    }
    reads["on the text"] = on_text(
        runs / "text read", model, prompts["trained"], texts["trained"], parts
    )
    main = reads["trained"]
    names = usable(main, [DONE, *skills])[:5]
    rare = [skill for skill in skills if skill not in names]
    page.say(
        f"**Scored**: {len(main.explore)} texts on {len(main.explore.groups)} topics to explore, "
        f"{len(main.confirm)} on {len(main.confirm.groups)} to confirm, {len(main.intervene)} on "
        f"{len(main.intervene.groups)} to intervene. Metrics: whether the text to come will show "
        f"the skill it was asked for, or a certain one, asked or not: "
        f"{', '.join(names) or 'none'} (at least {LEAST} texts with and without; "
        f"too rare for that: {', '.join(rare) or 'none'}), and the model's confidence in what it "
        "wrote: mean log-probability per token, probability of the first token, mean entropy. "
        f"Every neuron of every layer at each of the {given.vectors} prompt vectors. A text "
        "is one draw of what it might have been: even a neuron that knew its chances exactly would "
        "correlate with what was drawn only in part."
    )
    metrics = {name: f"label:{name}" for name in names}
    metrics |= {name: f"covariate:{name}" for name in CONFIDENCE}
    what = [f"asked {skill}" for skill in _asked(main)[1:]]  # the first follows from the others
    conditions = {
        "trained prompt": (main, ()),
        "trained prompt, given what was asked": (main, what),
        "untrained prompt": (reads["untrained"], ()),
        "untrained prompt, given what was asked": (reads["untrained"], what),
        "on the text itself": (reads["on the text"], ()),
        "on the text itself, given what was asked": (reads["on the text"], what),
        "on the text itself, given that and its length": (
            reads["on the text"],
            [*what, "n_tokens", "ended"],
        ),
    }
    rows, found, chosen = [], {}, {}
    for condition, (read, over) in conditions.items():
        can = set(usable(read, names)) | set(CONFIDENCE)
        here = {name: metric for name, metric in metrics.items() if name in can}
        found[condition] = read.scores(runs / f"scores {condition}", here, over)
        for name in found[condition].metrics:
            row, selection = read.funnel(found[condition], name, metrics[name], over)
            chosen[condition, name] = selection
            rows.append(
                {"where": condition, "metric": name}
                | {"largest r": float(found[condition][name].strength.max())}
                | {"by permutation": found[condition].thresholds[name]}
                | row
            )  # fmt: skip
    table = pd.DataFrame(rows)
    page.table(table, "Largest |r|, what each null reaches, and how many neurons are left:")
    page.say(outcome(table))
    confirmed = table.set_index(["where", "metric"])["confirmed"]
    text = confirmed["on the text itself, given what was asked"]
    page.figures |= {
        "before_confirmed": int(confirmed["trained prompt"].sum()),
        "text_confirmed": int(text.get(DONE, 0)),
        "confidence_confirmed": int(text["mean_log_probability"]),
    }
    survivors = [
        f"- {where}, {name}: "
        + ", ".join(
            f"{neuron} ({explore:+.2f}, {confirm:+.2f})"
            for neuron, explore, confirm in zip(
                selection.names,
                selection.r_explore.tolist(),
                selection.r_confirm.tolist(),
                strict=True,
            )
        )
        for (where, name), selection in chosen.items()
        if len(selection)
    ]
    if survivors:
        page.say("Confirmed (r to explore, r to confirm):\n\n" + "\n".join(survivors))
    pictures(page, found, table, names)
    shared(page, found, names)
    graded = texts["trained"]
    own_text(page, model, prompts["trained"], graded, parts[2], found, chosen, names, given)
    own_confidence(page, model, prompts["trained"], main, found, chosen, given)


def _asked(read: Read) -> list[str]:
    return sorted({str(example.column("skills")) for example in read.explore})


def outcome(table: pd.DataFrame) -> str:
    """What is left at the vectors before the first word, in words."""
    last = "confirmed"
    lines = []
    for where, part in table.groupby("where", sort=False):
        alive = part[part[last] > 0]
        beaten = part[part["associated"] > 0] if "associated" in part else part
        lines.append(
            f"- {where}: {len(beaten)} of {len(part)} metrics have neurons beyond the permutation "
            f"null, {len(alive)} have confirmed ones"
            + (f" ({', '.join(f'{r.metric} {getattr(r, last)}' for r in alive.itertuples())})"
               if len(alive) else ": **nothing survives**")
            + "."
        )  # fmt: skip
    on_text = table["where"].str.startswith("on the text")
    if (table.loc[on_text, last] > 0).any() and not (table.loc[~on_text, last] > 0).any():
        lines.append(
            "\nWhat survives is read off the text when it is there; **nothing survives before the "
            "first word**. Neurons on the text were not tested: the edits below "
            "change what stands before it."
        )
    return "\n".join(lines)


def pictures(page: Page, found: dict[str, Scores], table: pd.DataFrame, names: Any) -> None:
    """Where the strongest correlates are, for a skill and for confidence."""
    trained = found["trained prompt"]
    for name in [*names[:1], CONFIDENCE[0]]:
        label = name.replace("_", " ")
        page.picture(
            ls.figures.correlation_by_position(trained[name]),
            f"positions_{name.replace(' ', '_')}",
            f"Largest correlation with {label} by layer and prompt vector, before the text.",
        )
    name = names[0] if names else CONFIDENCE[0]
    text = found["on the text itself"]
    for where, scores in (("before", trained), ("on_text", text)):
        if name not in scores.metrics:
            continue
        page.picture(
            ls.figures.r_distribution(scores[name]), f"r_{where}",
            f"Correlation of all neurons with {name}, "
            + ("before the text is written." if where == "before" else "over the text itself."),
        )  # fmt: skip


def shared(page: Page, found: dict[str, Scores], names: Sequence[str]) -> None:
    """Neurons of several skills, on the text itself, where there is something to share."""
    scores = found["on the text itself"]
    kept = [name for name in (*names, *CONFIDENCE) if name in scores.metrics]
    if len(kept) < 2:
        page.say("Fewer than two metrics: no matrix of skills.")
        return
    matrix = ls.skill_matrix(scores, metrics=kept, top=20)
    counts = pd.Series(matrix.kinds).value_counts()
    told = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"
    groups = [" + ".join(group) for group in matrix.groups() if len(group) > 1]
    page.say(
        f"**Several skills at once**, on the text itself: of each metric the 20 strongest neurons "
        f"beyond its permutation threshold (found, not confirmed): {told}. Metrics whose neurons "
        f"go together (mean |likeness| of 0.5 or more): {'; '.join(groups) or 'none'}."
    )
    if len(matrix.names):
        page.picture(
            ls.figures.skill_matrix(matrix), "matrix",
            "r of the strongest neurons with every skill and with confidence, over the text.",
        )  # fmt: skip
