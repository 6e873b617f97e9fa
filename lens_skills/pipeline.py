"""`study`: every step from a task to confirmed neurons, on one card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_skills.activations import (
    DEFAULT_SITE,
    Position,
    find_site,
    parse_metrics,
    parse_position,
)
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_lens
from lens_skills.scoring import EXPLORATORY, Scores, Selection, score, select
from lens_skills.stats.exchange import check_scheme
from lens_skills.tasks import Preflight, Task, describe, require_examples

# How many of explore's strongest neurons are tested on confirm.
TESTED = 200
# Examples the preflight reads: enough for shares of a few per cent, at half a pass's cost.
_PREFLIGHT = 300
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
        explore, confirm: The two splits.
    """

    preflight: Preflight
    found: Scores
    checked: Scores
    selection: Selection
    metric: str
    explore: Task
    confirm: Task

    def __repr__(self) -> str:
        return "\n".join([self.selection.attrition_line(), *self._findings(), *self._preflight()])

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
        text = (
            f"{len(self.selection)} neurons carry this metric on unseen groups. They are "
            "correlates: whether the model uses them takes an intervention."
        )
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
        """Writes explore, confirm, selection and the preflight under one folder."""
        target = Path(folder)
        self.found.save(target / "explore")
        self.checked.save(target / "confirm")
        self.selection.save(target / "selection")
        self.preflight.save(target / "preflight.json")
        (target / "card.txt").write_text(repr(self) + "\n")
        self.selection.frame().to_csv(target / "neurons.csv", index=False)
        return target


def study(
    model: Any,
    task: Task,
    *,
    metric: Any = None,
    also: Sequence[Any] = (),
    at: str = DEFAULT_SITE,
    position: Position = "last",
    given: Sequence[str] = (),
    fractions: tuple[float, float] = (0.6, 0.4),
    fdr: float = 0.05,
    exchange: str = "auto",
    n_permutations: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    chat: bool = False,
    preflight: Preflight | None = None,
    progress: bool | None = None,
) -> Study:
    """Preflight, split, score, confirm, select: every step there is, on one card.

    The preflight reads at most 300 examples of explore.

    Args:
        model: A HookedTransformer or TransformerBridge.
        task: The task; it is split by group into explore and confirm.
        metric: What to look for. Default: ``logit_diff`` where the task has foils or options,
            else ``correct`` where it has answers, else the first label.
        also: Further metrics of the same pass, for the heat map.
        at, position, given, exchange, n_permutations: As in `score`.
        fractions: Shares of explore and confirm.
        fdr: Of `select`.
        seed: Of the split and all draws.
        batch_size, chat, progress: As in `score`.
        preflight: Of an earlier study of the same split, to be shown again instead of measured.

    Returns:
        `Study`. Its first line is the attrition: how many neurons were left at each gate.

    Raises:
        LensSkillsError: As `score` and `select`; a task too small to split.
    """
    require_examples(task, 40)
    (main,) = parse_metrics(_default_metric(task) if metric is None else metric)
    # Said before the preflight, which takes a while.
    find_site(as_lens(model), at)
    parse_position(position)
    check_scheme(exchange)
    for name in given:
        task.column(name)
    others = [other for other in parse_metrics(also) if other.name != main.name]
    explore, confirm = task.split(*fractions, seed=seed)
    common: dict[str, Any] = {
        "at": at,
        "position": position,
        "given": given,
        "exchange": exchange,
        "seed": seed,
        "batch_size": batch_size,
        "chat": chat,
        "progress": progress,
    }
    sample = explore
    if len(explore) > _PREFLIGHT:
        (sample,) = explore.split(_PREFLIGHT / len(explore), seed=seed)
    preflight = preflight or describe(
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
    return Study(preflight, found, checked, chosen, main.name, explore, confirm)


def _default_metric(task: Task) -> str:
    if all(example.answer is not None for example in task):
        contrast = all(example.foil is not None or len(example.options) > 1 for example in task)
        return "logit_diff" if contrast else "correct"
    labels = sorted({name for example in task for name in example.labels})
    if not labels:
        raise LensSkillsError(
            f"the task {task.name!r} has neither answers nor labels. Name a metric to study."
        )
    return f"label:{labels[0]}"
