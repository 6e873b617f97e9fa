"""Which neurons are right, or sure, about sums by a shortcut, and what it gets wrong.

    python benchmarks/arithmetic_shortcuts.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct
    python benchmarks/arithmetic_shortcuts.py --operation minus --metric correct
    python benchmarks/arithmetic_shortcuts.py --model arithmetic-small
    python benchmarks/arithmetic_shortcuts.py --bigbench FOLDER   # its two-digit files as well
    python benchmarks/arithmetic_shortcuts.py --quick             # a smoke run, into runs/

Writes figures/shortcuts/<model>.md with its figures and tables. What is finished is kept in
runs/shortcuts, so that an interrupted run goes on. A shortcut counts where ablation shows it on the
third split, and where the wrong answer that it was predicted to make comes more often on new
problems with its feature than on problems that are like them.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from arithmetic_fooling import (
    FEWEST_PAIRS,
    Fooled,
    Prediction,
    answers,
    fooled,
    knocked_out,
    matched_pairs,
    missing,
    predict,
    problems,
)
from asked_model import add_model, opened, slug
from pictures import keep
from timing import arguments, run_parts

import lens_skills as ls
from lens_skills.explanation import Shortcut, Shortcuts, feature_bank
from lens_skills.explanation.conditional_effects import Condition, condition_of
from lens_skills.explanation.shortcut_report import SHORTCUT
from lens_skills.plotting import figures
from lens_skills.tasks import few

OUT, RUNS, SEED = Path("figures/shortcuts"), Path("runs/shortcuts"), 0
DIGITS = (1, 2)
OPERATIONS = {"all": "+-*", "plus": "+", "minus": "-", "times": "*"}
METRICS = ("correct", "confidence")


@dataclass(frozen=True)
class Sizes:
    """How much is looked at.

    Attributes:
        examples: Of explore, confirm and intervene together, and of what is held out.
        shares: Of explore, confirm and intervene.
        k, pool: Neurons ablated alone, and neurons explained, from which sets are made.
        controls: Matched neurons of each neuron, and matched sets of each set.
        draws: Of the permutation nulls.
        conditions, pairs: For so many features problems are made, so many pairs each.
    """

    examples: int = 400
    shares: tuple[float, float, float] = (0.3, 0.15, 0.15)
    k: int = 2
    pool: int = 60
    controls: int = 59
    draws: int = 499
    conditions: int = 2
    pairs: int = 24


QUICK = Sizes(240, (0.4, 0.2, 0.2), 2, 8, 19, 99, 1, 12)


class Kept:
    """Parts of a run that are done, on disk, and the processor seconds each took."""

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "asked.json"
        if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != asked:
            raise SystemExit(f"{folder} is of another run. Remove it, or ask for the same again.")
        mark.write_text(json.dumps(asked), encoding="utf-8")

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """What was kept as JSON, else made and kept."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            start = time.process_time()
            value = make()
            kept = {"seconds": time.process_time() - start, "value": value}
            path.write_text(json.dumps(kept), encoding="utf-8")
            print(f"{name}: {kept['seconds']:.0f} s of processor time", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))["value"]

    def result(self, name: str, make: Callable[[], Shortcuts]) -> Shortcuts:
        """The same of a result, kept as its folder."""
        self.part(name, lambda: str(make().save(self.folder / f"{name}_found").name))
        return Shortcuts.load(self.folder / f"{name}_found")

    @property
    def minutes(self) -> float:
        """Of the processor, all parts together."""
        texts = [path.read_text(encoding="utf-8") for path in self.folder.glob("*.json")]
        return sum(json.loads(text).get("seconds", 0.0) for text in texts) / 60


def condition_named(one: Shortcut, explore: ls.Task) -> Condition:
    """The condition of a shortcut that was read from disk, from its words."""
    feature = feature_bank(explore)[one.feature]
    values = [feature.read(example) for example in explore]
    if feature.kind == "category":
        guesses = [[float(value == wanted) for value in values] for wanted in set(values)]
    else:
        guesses = [[sign * float(value or 0) for value in values] for sign in (1, -1)]
    for guess in guesses:
        found = condition_of(feature, explore, torch.tensor(guess))
        if found.words == one.condition:
            return found
    raise AssertionError(f"{one.condition!r} is no condition of {one.feature!r}")


@dataclass(frozen=True)
class Trial:
    """One condition put on trial: what was predicted, and what was seen."""

    one: Shortcut
    prediction: Prediction
    seen: dict[str, Any] | None


class Study:
    """The splits of one model, and what is measured on each."""

    def __init__(self, asked: Any) -> None:
        self.asked, self.sizes = asked, QUICK if asked.quick else Sizes()
        self.name = slug(asked.model)
        if asked.operation != "all":
            self.name += f"_{asked.operation}"
        self.ops = OPERATIONS[asked.operation]
        self.kept = Kept(
            RUNS / f"{self.name}{'_quick' if asked.quick else ''}",
            {"sizes": json.loads(json.dumps(asdict(self.sizes))), "seed": SEED},
        )
        task = ls.tasks.arithmetic(self.ops, digits=DIGITS, n=self.sizes.examples, seed=SEED)
        self.explore, self.confirm, self.intervene = task.split(
            *self.sizes.shares, seed=SEED, names=("explore", "confirm", "intervene")
        )
        self.splits = (self.explore, self.confirm, self.intervene)
        self.read = {group for split in self.splits for group in split.groups}
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The model, opened when something is measured."""
        if self._model is None:
            self._model = opened(self.asked.model)
        return self._model

    def preflight(self) -> dict[str, Any]:
        """Whether there is a skill, in preflight's words."""

        def make() -> dict[str, Any]:
            found = ls.preflight(self.model, few(self.explore, 120, seed=SEED))
            return {
                "says": [
                    f"{one.name}: {one.rate:.2f} [{one.low:.2f}, {one.high:.2f}], chance "
                    f"{one.chance:.2f} ({one.rule})"
                    for one in found.competences
                    if one.low is not None and one.high is not None
                ],
                "skill": found.competences[0].above_chance,
                "advice": list(found.advice),
                "n": found.n_examples,
                "groups": found.n_groups,
            }

        return dict(self.kept.part("preflight", make))

    def shortcuts(self, metric: str) -> Shortcuts:
        """The search, the sets and the ablations for one metric."""
        sizes = self.sizes
        return self.kept.result(
            metric,
            lambda: ls.shortcuts(
                self.model,
                *self.splits,
                metric=ls.confidence() if metric == "confidence" else metric,
                k=sizes.k,
                sets=sizes.pool,
                controls=ls.controls(neurons=sizes.controls, sets=sizes.controls),
                n_permutations=sizes.draws,
                seed=SEED,
            ),
        )

    def predictions(self, tied: Sequence[Shortcut]) -> dict[str, Prediction]:
        """By condition, from what the model wrote for explore and confirm."""
        examples = [*self.explore, *self.confirm]
        said = [*self.answers("explore", self.explore), *self.answers("confirm", self.confirm)]
        conditions = {one.condition: condition_named(one, self.explore) for one in tied}
        return {
            words: predict(condition, examples, said) for words, condition in conditions.items()
        }

    def answers(self, name: str, examples: Sequence[Any]) -> list[str]:
        """What the model writes for one split."""
        return list(self.kept.part(f"answers_{name}", lambda: answers(self.model, examples)))

    def fool(self, one: Shortcut, prediction: Prediction, pool: str) -> dict[str, Any] | None:
        """New problems, with the neurons and without; None where no pair could be made."""
        condition = condition_named(one, self.explore)
        if prediction.condition != condition.words:
            condition = missing(condition)
        pairs = matched_pairs(
            self.pool(pool), condition, prediction.answer, self.sizes.pairs, seed=SEED
        )
        if len(pairs) < FEWEST_PAIRS:
            return None
        both = [*(first for first, _ in pairs), *(second for _, second in pairs)]
        members = one.members or (one.name,)

        def make() -> dict[str, Any]:
            said = answers(self.model, both)
            without = answers(self.model, both, members, self.explore)
            return {"said": said, "without": without}

        known = "".join(c if c.isalnum() else "_" for c in f"{pool}_{one.name}")
        found = self.kept.part(f"fooling_{known}", make)
        seen = fooled(pairs, found["said"], prediction.answer)
        out = knocked_out(pairs, found["said"], found["without"], prediction.answer)
        return {"seen": seen, "out": out, "pairs": pairs, **found}

    def pool(self, name: str) -> list[Any]:
        """Problems that no split holds: generated ones, or those of BIG-bench."""
        if name == "generated":
            return problems(self.ops, DIGITS, self.read, most=700, seed=SEED + 1)
        names = {"+": "addition", "-": "subtraction", "*": "multiplication"}
        found: list[Any] = []
        for op in self.ops:
            path = Path(self.asked.bigbench) / f"2_digit_{names[op]}.json"
            found += [e for e in ls.tasks.bigbench(path) if e.group not in self.read]
        return found


def trials(study: Study, tried: Sequence[Shortcut], pool: str) -> list[Trial]:
    """The conditions that most speaks for, each with its largest set or its neuron."""
    tied = [one for one in tried if one.condition]
    predicted = study.predictions(tied) if tied else {}
    order = sorted(
        tied,
        key=lambda one: (one.word != SHORTCUT, not predicted[one.condition].answer, -abs(one.r)),
    )
    chosen: dict[str, Shortcut] = {}
    for one in order:
        before = chosen.get(one.condition)
        if before is None or (before.word != SHORTCUT and len(one.members) > len(before.members)):
            chosen[one.condition] = one
    found = []
    for place, (words, one) in enumerate(chosen.items()):
        prediction = predicted[words]
        able = place < study.sizes.conditions and prediction.answer
        seen = study.fool(one, prediction, pool) if able else None
        found.append(Trial(one, prediction, seen))
    return found


def counts(one: Shortcut, seen: Fooled | None) -> bool:
    """Whether ablation confirms it and its predicted failure was seen on new problems."""
    return one.word == SHORTCUT and seen is not None and seen.seen


def candidate_rows(metric: str, found: Shortcuts, trial: Sequence[Trial]) -> list[dict[str, Any]]:
    """*candidate – feature – r – effects – controls – predicted – seen – counts?*."""
    by_condition = {one.one.condition: one for one in trial}
    rows = []
    for one in found.tried:
        mine = by_condition.get(one.condition) if one.condition else None
        effect = one.difference or one.effect
        predicted = mine.prediction if mine else None
        seen = mine.seen["seen"] if mine and mine.seen else None
        rows.append(
            {
                "metric": metric,
                "candidate": ", ".join(one.members) or one.name,
                "feature": one.condition or f"none (best: {one.task_feature or '–'})",
                "r explore": one.r_explore,
                "r confirm": one.r,
                "with": one.effect_present,
                "without": one.effect_absent,
                "difference": f"{effect}" if one.difference else f"on all examples: {effect}",
                "controls": one.n_controls,
                "word": f"{one.word}{': ' + one.why if one.why else ''}",
                "predicted failure": said_of(predicted),
                "seen failure": f"{seen.more_answers} in {seen.n_pairs} pairs" if seen else "–",
                "counts": "yes" if counts(one, seen) else "no",
            }
        )
    return rows


def said_of(prediction: Prediction | None) -> str:
    """A prediction in a cell."""
    if prediction is None:
        return "–"
    if not prediction.answer:
        return "none: no wrong answer comes more often"
    side = "where it is missing: " if prediction.condition.startswith("not: ") else ""
    return (
        f"{side}{prediction.answer} ({prediction.seen} of {prediction.n_with}; "
        f"{prediction.excess:+.2f} beside the like)"
    )


class Page:
    """Paragraphs and tables of one model."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out, self.parts = name, out, list[str]()
        out.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """A paragraph, also printed."""
        self.parts.append(text)
        print(f"\n{text}", flush=True)

    def table(self, rows: Sequence[dict[str, Any]], name: str) -> None:
        """A table, kept as CSV as well."""
        frame = pd.DataFrame(list(rows))
        frame.to_csv(self.out / f"{self.name}_{name}.csv", index=False)
        lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
        lines += [[cell(value) for value in row] for row in frame.to_numpy(dtype=object)]
        self.say("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def write(self) -> None:
        """The page."""
        path = self.out / f"{self.name}.md"
        path.write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")


SHOWN = 3  # of a set's neurons; the table beside the page holds all


def cell(value: Any) -> str:
    """A number to two digits, a text as it is, of many neurons the first."""
    names = value.split(", ") if isinstance(value, str) else []
    if len(names) > SHOWN + 1 and all(re.fullmatch(r"L\d+N\d+", name) for name in names):
        return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
    if isinstance(value, float):
        return "–" if value != value else f"{value:+.2f}"
    return "–" if value is None else str(value).replace("|", "¦")


def run(asked: Any) -> dict[str, float]:
    """Everything for one model, and the page."""
    study = Study(asked)
    page = Page(study.name, RUNS / "quick" if asked.quick else OUT)
    sizes, splits = study.sizes, study.splits
    only = "" if asked.operation == "all" else f", {asked.operation} alone"
    page.say(f"# Shortcuts in arithmetic: {public_name(asked.model)}{only}")
    page.say(introduction(asked, study))
    flight = study.preflight()
    page.say(
        f"Preflight on {flight['n']} problems of explore in {flight['groups']} groups: "
        + "; ".join(flight["says"])
        + f". Its advice: {'; '.join(flight['advice'])}."
    )
    numbers: dict[str, float] = {"skill": float(bool(flight["skill"])), "tried": 0.0, "count": 0.0}
    if not flight["skill"]:
        page.say(
            "**The trial ends here**: whole answers are not right beyond chance. A shortcut is a "
            "way of being right, or sure, without the skill; where answers are right by chance, "
            "what goes with it is chance, and a neuron found for it would be too. No neuron was "
            "searched for."
        )
        page.write()
        return numbers | {"minutes": study.kept.minutes}
    every: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    for metric in [asked.metric] if asked.metric else METRICS:
        found = study.shortcuts(metric)
        page.say(f"## {metric}")
        for note in found.notes:
            page.say(f"- {note}")
        if not found.tried:
            continue
        named = f"{page.name.replace('.', '_')}_{metric}"  # what follows a dot is a suffix
        picture = keep(figures.shortcut_effects(found), page.out / named)
        page.say(f"![{metric}: effects with the feature and without]({picture.name})")
        for pool in ("generated", *(("BIG-bench",) if asked.bigbench else ())):
            trial = trials(study, found.tried, pool)
            details += fooling_rows(metric, pool, trial)
            if pool == "generated":
                every += candidate_rows(metric, found, trial)
    page.say(
        f"## The candidates\n\n{len(every)} candidates were tried. *with* and *without*: mean "
        "effect of the ablation on examples with the feature and without, *difference* with its "
        "95 % interval over groups and q among the controls; of correct it is the effect on the "
        "logit difference of answer and foil. *seen failure*: rate of the predicted wrong answer "
        "on new problems with the feature less on those like them without."
    )
    if every:
        page.table(every, "candidates")
    page.say(f"## Problems made to fool them\n\n{fooling_words(details, sizes)}")
    if details:
        page.table(details, "fooling")
    n = sum(row["counts"] == "yes" for row in every)
    page.say(
        f"**{n} of {len(every)} candidates count as a shortcut**: confirmed by ablation on the "
        "third split, with a failure that was predicted on explore and confirm and comes on new "
        f"problems. {study.kept.minutes:.1f} minutes of processor time on one thread; seed {SEED}."
    )
    page.write()
    return numbers | {
        "tried": float(len(every)),
        "confirmed": float(sum(row["word"] == SHORTCUT for row in every)),
        "count": float(n),
        "explore": float(len(splits[0])),
        "intervene_groups": float(len(splits[2].groups)),
        "minutes": study.kept.minutes,
    }


def public_name(asked: str | None) -> str:
    """The model as a page calls it: of a file or folder, the last part of its path."""
    if asked is None:
        return "SmolLM2-135M-Instruct"
    return re.sub(r"-q\d\w*$", "", Path(asked).stem) if Path(asked).exists() else asked


def introduction(asked: Any, study: Study) -> str:
    """What was run on what."""
    sizes = study.sizes
    split = ", ".join(
        f"{name} {len(part)} in {len(part.groups)} groups"
        for name, part in zip(("explore", "confirm", "intervene"), study.splits, strict=True)
    )
    gguf = " A 4-bit GGUF of it was run." if str(asked.model or "").endswith(".gguf") else ""
    signs = " ".join(study.ops)
    options = "" if asked.operation == "all" else f" --operation {asked.operation}"
    options += f" --metric {asked.metric}" if asked.metric else ""
    told = f"arithmetic_shortcuts.py{' --model …' if asked.model else ''}{options}"
    return (
        f"`python benchmarks/{told}`.{gguf} Problems of one and two digits with "
        f"{signs} ({split}; the group is the unordered pair of operands). For being right, or for "
        f"confidence: the strongest neurons that hold up, at most {sizes.pool}, are explained by "
        f"the feature bank; the {sizes.k} strongest of those tied to a feature of the surface "
        "(else the strongest) are ablated alone, and those of one feature together, each beside "
        f"{sizes.controls} matched neurons or sets. What a feature makes the model say is "
        "predicted from the answers to explore and confirm: of twelve wrong answers written down "
        "before (copies, forgotten carries and signs, off by one or ten, another operation) the "
        "one that comes most where the feature holds, or is missing, beyond what problems of the "
        "same operation and length on the other side show. Then it is looked for on new problems. "
        "The twelve were written after a look at what Qwen2.5-Coder "
        "gets wrong on an explore split, where it leaves out signs, borrows from nowhere (35 minus "
        "86: 49) and forgets carries; that was another draw of such problems, so some may stand in "
        "these splits. Subtraction was singled out because of it. That a failure may lie where the "
        "feature is missing was decided after the answers to explore were seen and before any "
        "new problem; new pairs were cut from 40 to 24 before any result of Qwen2.5-Coder."
    )


def fooling_rows(metric: str, pool: str, trial: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row per condition that was tried on new problems."""
    rows = []
    for one in trial:
        if one.seen is None:
            continue
        seen, out = one.seen["seen"], one.seen["out"]
        rows.append(
            {
                "metric": metric,
                "problems": pool,
                "problems with": one.prediction.condition,
                "neurons": ", ".join(one.one.members) or one.one.name,
                "pairs": seen.n_pairs,
                "predicted": one.prediction.answer,
                "errors with": seen.errors_with.share,
                "errors without": seen.errors_without.share,
                "more errors": str(seen.more_errors),
                "answer with": seen.answer_with.share,
                "answer without": seen.answer_without.share,
                "more of it": str(seen.more_answers),
                "seen": "yes" if seen.seen else "no",
                "knocked out: the answer": str(out.predicted),
                "knocked out: right, with": str(out.right_with),
                "knocked out: right, without": str(out.right_without),
            }
        )
    return rows


def fooling_words(details: Sequence[dict[str, Any]], sizes: Sizes) -> str:
    """What the table of new problems holds, or why there is none."""
    if not details:
        return (
            "None were made: no candidate is tied to a feature for which a wrong answer was "
            "predicted."
        )
    return (
        f"For at most {sizes.conditions} features of each metric, confirmed ones first. In each "
        "pair the feature (or that it is missing, where that was predicted to fail) holds in one "
        "problem and not in the other; both are of one operation, as long in operands and result, "
        "of one sign unless the feature decides it, and the predicted answer is wrong in both. No "
        "operands of "
        "the splits are among them, and none come twice, so that a pair is a group. Answers are "
        "what the model writes greedily; intervals are exact ones of shares (95 %). *knocked out*: "
        "the same problems with the neurons at their mean over explore, less before; no random "
        "neurons were knocked out beside them here. At first the sign was always kept, and of "
        "*a is not larger than b* only problems with a = b were left (20 pairs, none wrong with "
        "the feature, one without); the pairs were made again by the rule above."
    )


def main() -> None:
    """The command."""
    parser = arguments(__doc__, quick="few problems and controls, to see that it runs")
    add_model(parser)
    parser.add_argument("--bigbench", metavar="FOLDER", help="BIG-bench's arithmetic task files")
    parser.add_argument("--operation", choices=list(OPERATIONS), default="all")
    parser.add_argument("--metric", choices=METRICS, help="one of them alone; default: both")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    name = slug(asked.model) + ("" if asked.operation == "all" else f"_{asked.operation}")
    run_parts({name: lambda: run(asked)}, asked)


if __name__ == "__main__":
    main()
