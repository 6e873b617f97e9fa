"""`study`: every step from a task to a verdict on its neurons, on one card.

`Study`: what every step found, and the card it prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_skills.activations import (
    DEFAULT_SITE,
    Position,
    find_site,
    parse_metric,
    parse_metrics,
    parse_position,
)
from lens_skills.activations.metrics import causal_metric
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import DEFAULT_CONTROLS, Controls, Edit, Verdict, ablate, verify
from lens_skills.models import as_adapter
from lens_skills.scoring import EXPLORATORY, Scores, Selection, score, select
from lens_skills.stats.permutation import check_scheme
from lens_skills.tasks import Preflight, Task, few, require_examples
from lens_skills.tasks import preflight as run_preflight

# How well other columns must predict a metric (R², and AUROC where it is 0/1) to be warned of.
_EXPLAINED = {False: 0.25, True: 0.75}


@dataclass(frozen=True, eq=False)
class Study:
    """What every step found; printing it shows one card.

    Attributes:
        preflight: Whether there is a skill, and what would explain it away.
        found: Scores of all neurons on the explore split.
        checked: Scores of explore's strongest on the confirm split.
        selection: What passed every gate and was confirmed.
        metric: The metric the selection is about.
        explore, confirm, intervene: The splits, none sharing a group; the last may be missing.
        verdict: What interventions show of the confirmed neurons, on ``intervene``. None where
            there is none.
        untried: Why there is none.
    """

    preflight: Preflight
    found: Scores
    checked: Scores
    selection: Selection
    metric: str
    explore: Task
    confirm: Task
    intervene: Task | None
    verdict: Verdict | None
    untried: str = ""

    def __repr__(self) -> str:
        return "\n".join(
            [self.attrition_line(), *self._findings(), *self._court(), *self._preflight()]
        )

    def attrition_line(self) -> str:
        """``46,080 neurons → … → 3 confirmed → 1 supports · 2 no total effect beyond δ``."""
        line = self.selection.attrition_line()
        if self.verdict is None:
            return line
        words = [f"{count:,} {word}" for word, count in self.verdict.counts.items() if count]
        return f"{line} → {' · '.join(words)}"

    def _court(self) -> list[str]:
        if self.verdict is None:
            return ["", f"No verdict: {self.untried}."]
        return ["", "Verdict (on a third split)", *repr(self.verdict).splitlines()]

    def _preflight(self) -> list[str]:
        return ["", "Preflight", *repr(self.preflight).splitlines()]

    def _findings(self) -> list[str]:
        found, bars = self.found, self.found[self.metric].thresholds
        lines = [
            f"{self.metric} · {found.site} at {', '.join(found.positions)} · explore "
            f"{found.n_examples} examples in {found.n_groups} groups, confirm "
            f"{self.checked.n_examples} in {self.checked.n_groups}"
        ]
        if found.provenance["given"]:
            lines.append(f"partial r, given {', '.join(found.provenance['given'])}")
        if self.selection.exploratory:
            lines.append(EXPLORATORY)
        nulls = {
            "permutation": bars.permutation,
            "control task": bars.control,
            "rotated basis": bars.rotated,
        }
        drawn = [f"{name} {bar:.2f}" for name, bar in nulls.items() if bar is not None]
        lines.append(f"|r| to beat: {', '.join(drawn)}")
        lines += ["", *self._table(), "", self._verdict()]
        return lines

    def _table(self) -> list[str]:
        frame = self.selection.frame()
        if frame.empty:
            best = self.found[self.metric].frame().head(3)
            names = [f"L{row.layer}N{row.neuron} ({row.r:+.2f})" for row in best.itertuples()]
            return [f"no neuron passed every gate; the strongest were {', '.join(names)}"]
        shown = frame.head(10)[["name", "r_explore", "r_confirm", "p", "q"]]
        return shown.to_string(index=False, float_format=lambda x: f"{x:.3g}").splitlines()

    def _verdict(self) -> str:
        if self.preflight.skill is False:
            return (
                "no skill to explain: whatever these neurons track, the model does not do the task."
            )
        if len(self.selection) == 0:
            return "nothing to report: what correlates here, any basis or a random label matches."
        text = f"{len(self.selection)} neurons carry this metric on unseen groups. "
        if self.verdict is None:
            text += "They are correlates: whether the model uses them takes an intervention."
        else:
            text += "Whether the model uses them is for the verdict below."
        quality = self.preflight.predicted.get(self.metric, 0.0)
        if (
            not self.found.provenance["given"]
            and quality > _EXPLAINED[self.metric in self.preflight.binary]
        ):
            text += (
                f"\ncaution: the task's other columns alone predict {self.metric} "
                f"({quality:.2f}); these neurons may carry those instead. Repeat with given=[…]."
            )
        return text

    def save(self, folder: str | Path) -> Path:
        """Writes explore, confirm, selection, verdict and the preflight under one folder."""
        target = Path(folder)
        self.found.save(target / "explore")
        self.checked.save(target / "confirm")
        self.selection.save(target / "selection")
        self.preflight.save(target / "preflight.json")
        if self.verdict is not None:
            self.verdict.save(target / "verdict")
            self.verdict.frame().to_csv(target / "verdict.csv", index=False)
        (target / "card.txt").write_text(repr(self) + "\n")
        self.selection.frame().to_csv(target / "neurons.csv", index=False)
        return target


# How many of explore's strongest neurons are tested on confirm.
TESTED = 200


# Examples the preflight reads: enough for shares of a few per cent, at half a pass's cost.
_PREFLIGHT = 300


def study(
    model: Any,
    task: Task,
    *,
    metric: Any = None,
    also: Sequence[Any] = (),
    at: str = DEFAULT_SITE,
    position: Position = "last",
    given: Sequence[str] = (),
    fractions: Sequence[float] = (0.4, 0.2, 0.4),
    causal: Any = None,
    do: Edit | None = None,
    delta: float | None = None,
    n_trials: int = 64,
    controls: Controls = DEFAULT_CONTROLS,
    fdr: float = 0.05,
    exchange: str = "auto",
    n_permutations: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    chat: bool = False,
    preflight: Preflight | None = None,
    progress: bool | None = None,
) -> Study:
    """Preflight, split, score, confirm, select, verify: every step there is, on one card.

    The preflight reads at most 300 examples of explore.

    Args:
        model: A HookedTransformer or TransformerBridge.
        task: The task; it is split by group into explore, confirm and intervene.
        metric: What to look for. Default: ``logit_diff`` where the task has foils or options,
            else ``correct`` where it has answers, else the first label.
        also: Further metrics of the same pass, for the heat map.
        at, position, given, exchange, n_permutations: As in `score`.
        fractions: Shares of explore, confirm and intervene; without the third, no verdict.
        causal: The metric interventions are judged by. Default: ``logit_diff`` where the task has
            foils or options, else ``answer_probability``.
        do: The edit of the verdict; default mean ablation, means from explore.
        delta: The smallest effect that matters, in the unit of ``causal``; see `verify`.
        n_trials: Examples of intervene that are edited, spread over its groups.
        controls: As in `verify`, whose time is about that of ``controls.neurons`` single-neuron
            effects per layer. Fewer of them and fewer trials shorten a verdict on neurons of many
            layers.
        fdr: Of `select`.
        seed: Of the split and all draws.
        batch_size, chat, progress: As in `score`.
        preflight: Of an earlier study of the same split, to be shown again instead of measured.

    Returns:
        `Study`. Its first line is the attrition: how many neurons were left at each gate, and
        what the verdict says of them.

    Raises:
        LensSkillsError: As `score` and `select`; a task too small to split.
    """
    require_examples(task, 40)
    main = parse_metric(
        _default_metric(task) if metric is None else metric, task, asked="study(metric=…)"
    )
    # Said before the preflight, which takes a while.
    find_site(as_adapter(model), at)
    parse_position(position)
    check_scheme(exchange)
    for name in given:
        task.column(name)
    others = [other for other in parse_metrics(also, task) if other.name != main.name]
    if len(fractions) not in (2, 3):
        raise LensSkillsError(
            f"fractions={fractions}: give the shares of explore, confirm and (for a verdict) "
            "intervene."
        )
    explore, confirm, *rest = task.split(*fractions, seed=seed)
    judge = causal_metric(task) if causal is None else causal
    common: dict[str, Any] = {
        "at": at,
        "position": position,
        "given": given,
        "exchange": exchange,
        "seed": seed,
        "chat": chat,
    }
    sample = explore
    if len(explore) > _PREFLIGHT:
        (sample,) = explore.split(_PREFLIGHT / len(explore), seed=seed)
    preflight = preflight or run_preflight(
        model,
        sample,
        metrics=[main, *others],
        chat=chat,
        batch_size=batch_size,
        progress=progress,
    )
    try:
        found = score(
            model, explore, metrics=[main, *others], n_permutations=n_permutations, **common
        )
    except LensSkillsError as error:
        if main.name not in preflight.constant:
            raise
        raise LensSkillsError(
            f"{main.name!r} cannot be studied here: {error}\n{preflight}"
        ) from error
    if main.name not in found.metrics:
        raise LensSkillsError(
            f"{main.name!r} cannot be studied here: {found.excluded_metrics[main.name]}.\n"
            f"{preflight}"
        )
    neurons = found[main.name].top(TESTED)
    checked = score(model, confirm, metrics=[main], neurons=neurons, **common)
    chosen = select(found[main.name], checked[main.name], fdr=fdr)
    trial = few(rest[0], n_trials, seed=seed) if rest else None
    verdict, untried = None, _no_trial(chosen, trial, judge, chat)
    if trial is not None and not untried:
        try:
            verdict = verify(
                model,
                trial,
                chosen,
                do=ablate("mean", over=found) if do is None else do,
                metric=judge,
                delta=delta,
                controls=controls,
                seed=seed,
            )
        except LensSkillsError as error:
            # The search is done and worth its card; the card says why it ends here.
            untried = str(error)
    return Study(
        preflight, found, checked, chosen, main.name, explore, confirm, trial, verdict, untried
    )


def _no_trial(chosen: Selection, trial: Task | None, judge: Any, chat: bool) -> str:
    if trial is None:
        return "no third split was asked for; fractions=(0.4, 0.2, 0.4) makes one"
    if len(chosen) == 0:
        return "nothing was confirmed"
    if judge is None:
        return "the task has no answers to judge by; name a metric: causal=…"
    return "prompts in a chat template cannot be edited yet" if chat else ""


def _default_metric(task: Task) -> str:
    metric = causal_metric(task)
    if metric is not None:
        return metric if metric == "logit_diff" else "correct"
    labels = sorted({name for example in task for name in example.labels})
    if not labels:
        raise LensSkillsError(
            f"the task {task.name!r} has neither answers nor labels. Name a metric to study."
        )
    return f"label:{labels[0]}"
