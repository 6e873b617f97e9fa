"""`score_part`: the sums of `score` over some of the examples, on one of several machines.

`PartialScores` of parts that share no example add with ``+``; those of all examples make `Scores`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, Position
from lens_skills.cards import card_lines
from lens_skills.checkpoints import resumable
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt
from lens_skills.results import Result, examples_hash
from lens_skills.scoring.correlations import collect
from lens_skills.scoring.design_matrix import DesignMatrix
from lens_skills.scoring.predictivity import FiringCounts
from lens_skills.scoring.score import sum_up
from lens_skills.scoring.scores import Scores
from lens_skills.stats.moments import Moments

_SUMS = ("weight", "column_mean", "unit_mean", "gram", "column_square", "cross", "square",
         "origin", "squares")  # fmt: skip
# How the counts against a baseline's thresholds add.
_COUNTS = {"thresholds": lambda one, _: one, "fired": torch.add, "count": torch.add,
           "binary": torch.logical_and}  # fmt: skip
# What may differ between machines and does not change what is summed.
_OF_A_MACHINE = ("versions", "implementation")


@dataclass(frozen=True, eq=False)
class PartialScores(Result):
    """What `score` sums over some of the examples; with ``+`` of more, with `scores` of all.

    Attributes:
        metrics: Names of the metrics.
        known: Of these, the columns of the task.
        layer, neuron: What each unit is.
        positions, site: Where they were read.
        sums: By name, float64; see `stats.moments.Moments`.
        marks: Columns that stand for groups, first and behind the last; None without.
        values: The metrics of all examples; 0 where they were not read.
        read: Which examples were.
        exchange: As it was asked for.
        whole_layers: Whether all neurons of the layers were scored.
        notes: Sentences a reader of the numbers must see.
        exploratory: As in `Scores`.
        firing: With a baseline: each unit's threshold, how often it was exceeded in each class of
            each 0/1 metric, and among how many examples. Empty without.
        provenance: Model, task, site, seed and versions behind the numbers.
    """

    metrics: tuple[str, ...]
    known: tuple[str, ...]
    layer: Int[Tensor, " unit"]
    neuron: Int[Tensor, " unit"]
    positions: tuple[str, ...]
    site: str
    sums: dict[str, Tensor]
    marks: tuple[int, int] | None
    values: dict[str, Tensor]
    read: Bool[Tensor, " example"]
    exchange: str
    whole_layers: bool
    notes: tuple[str, ...] = ()
    exploratory: bool = False
    firing: dict[str, Tensor] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n_read(self) -> int:
        """How many of the examples were read."""
        return int(self.read.sum())

    def __add__(self, other: "PartialScores") -> "PartialScores":
        """The sums over the examples of both.

        Raises:
            LensSkillsError: Parts of another model, site, task, … (which, and why), or that share
                examples.
        """
        if not isinstance(other, PartialScores):
            raise LensSkillsError(
                f"a part of scores is added to another, as score_part returns them, not to a "
                f"{type(other).__name__}."
            )
        self._check_fits(other)
        one, two = self._moments(), other._moments()
        if self.marks is not None and two.squares is not None:
            assert one.origin is not None
            two = two.at_origin(one.origin, slice(*self.marks))
        both = one + two
        sums = {name: getattr(both, name) for name in _SUMS if getattr(both, name) is not None}
        sums["weight"] = torch.tensor(both.weight, dtype=torch.float64)
        values = {
            name: numbers if name in self.known else torch.where(
                other.read, other.values[name], numbers
            )
            for name, numbers in self.values.items()
        }  # fmt: skip
        return replace(
            self,
            sums=sums,
            values=values,
            read=self.read | other.read,
            firing={name: _COUNTS[name](x, other.firing[name]) for name, x in self.firing.items()},
            exploratory=self.exploratory or other.exploratory,
        )

    def scores(self, examples: Sequence[Example]) -> Scores:
        """The scores, once all examples were read; ``examples`` are all, as `score_part` took them.

        Raises:
            LensSkillsError: Examples that were not read, or others than these.
        """
        if examples_hash(examples) != self.provenance["examples"]:
            raise LensSkillsError(
                "these are not the examples the parts were scored for: give the same, in the same "
                "order, as examples."
            )
        if not bool(self.read.all()):
            missing = (~self.read).nonzero()[:, 0].tolist()
            raise LensSkillsError(
                f"{len(missing):,} of {len(self.read):,} examples were not read yet (first: "
                f"{examples[missing[0]].id!r}). Add the parts that read them."
            )
        about = self.provenance
        columns = DesignMatrix(
            [_metric(name, name in self.known) for name in self.metrics],
            {name: self.values[name] for name in self.known},
            examples,
            given=about["given"],
            exchange=self.exchange,
            n_draws=about["n_permutations"],
            n_controls=about["n_controls"],
            seed=about["seed"],
        )
        return collect(
            self._moments(),
            columns,
            values=self.values,
            units=(self.layer, self.neuron),
            whole_layers=self.whole_layers,
            positions=self.positions,
            rotations=[],
            site=self.site,
            examples=examples,
            predictivity=self._predictivity(),
            exploratory=self.exploratory,
            notes=self.notes,
            provenance=about,
        )

    def _moments(self) -> Moments:
        sums: dict[str, Any] = {name: self.sums.get(name) for name in _SUMS}
        sums["weight"] = float(self.sums["weight"])
        rotated = torch.zeros(0, len(self.sums["square"]), dtype=torch.float64)
        return Moments(**sums, rotated_square=rotated)

    def _predictivity(self) -> dict[str, Tensor]:
        if not self.firing:
            return {}
        counts = FiringCounts(self.firing["thresholds"], len(self.metrics))
        for name in ("fired", "count", "binary"):
            setattr(counts, name, self.firing[name])
        return counts.predictivity(self.metrics)

    def _check_fits(self, other: "PartialScores") -> None:
        here, there = dict(self.provenance), dict(other.provenance)
        for name in ("site", "positions", "metrics", "known", "exchange"):
            here[name], there[name] = getattr(self, name), getattr(other, name)
        for name in dict.fromkeys([*here, *there]):
            if name not in _OF_A_MACHINE and _plain(here.get(name)) != _plain(there.get(name)):
                raise LensSkillsError(
                    f"the parts do not fit each other: {name} is {here.get(name)!r:.80} in one and "
                    f"{there.get(name)!r:.80} in the other. Score both parts alike."
                )
        if not (self.layer.equal(other.layer) and self.neuron.equal(other.neuron)):
            raise LensSkillsError(
                "the parts do not fit each other: they hold other neurons, or in another order. "
                "Score the same in both."
            )
        here, there = self.firing, other.firing
        if here.keys() != there.keys() or (
            here and not here["thresholds"].equal(there["thresholds"])
        ):
            raise LensSkillsError(
                "the parts do not fit each other: their thresholds come from different baselines, "
                "or one has none. Give every part the same baseline=."
            )
        shared = (self.read & other.read).nonzero()[:, 0]
        if len(shared):
            raise LensSkillsError(
                f"{len(shared):,} examples were read in both parts (the first is number "
                f"{int(shared[0])} of all): they would count twice. Read each in one part."
            )

    def __repr__(self) -> str:
        n = len(self.read)
        lines = [
            f"part of the scores of {', '.join(self.metrics)} · {self.site} at "
            f"{', '.join(self.positions)}",
            f"  {self.n_read:,} of {n:,} examples read · {len(self.layer):,} neurons",
        ]
        more = "add (+) the other parts" if self.n_read < n else "all are read: .scores(examples)"
        return "\n".join(row for line in [*lines, f"  {more}"] for row in card_lines(line))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _metric(name: str, known: bool) -> Metric:
    """A metric of which only its values are read."""
    return Metric(name, lambda readout, examples: torch.zeros(0), frozenset(() if known else "?"))


@resumable()
def score_part(
    model: Any,
    here: Sequence[Example],
    examples: Sequence[Example],
    *,
    metrics: Any,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    layers: int | Iterable[int] | None = None,
    neurons: Any = None,
    prompt: SoftPrompt | None = None,
    given: Sequence[str] = (),
    baseline: Scores | None = None,
    exchange: str = "auto",
    n_permutations: int | None = None,
    n_controls: int | None = None,
    seed: int = 0,
    chat: Chat = False,
    precision: str | None = None,
    exploratory: bool = False,
    checkpoint: str | Path | None = None,
) -> PartialScores:
    """The sums of `score` over the examples that are ``here``, to be added to those of others.

    Every machine is given all ``examples`` (ids, groups, labels: what is exchanged under the null
    is drawn over all of them) and reads its own. The parts add with ``+``, in any order, and
    ``part.scores(examples)`` are what `score` gives for all at once with ``n_rotations=0``, to
    float64 rounding. Random directions are not drawn: their scale is one machine's.

    Args:
        model: A model, or an `ActivationTable`, of which ``table.examples`` are here.
        here: The examples to read, each of them among all.
        examples: All of them, the same and in the same order for every part.
        metrics: As in `score`. Those that the model computes are of the examples here.
        at, position, layers, neurons, prompt, given, exchange: As in `score`.
        baseline: As in `score`, the same for every part: what is counted against its thresholds
            adds.
        n_permutations, n_controls, seed, chat, precision, exploratory, checkpoint: As in `score`.

    Raises:
        LensSkillsError: As in `score`; an example here that is not among all; covariates to take
            out of a metric whose values elsewhere are not known.

    Source: sums of centred products over disjoint rows, Chan, Golub & LeVeque 1983.

    >>> import lens_skills as ls
    >>> model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic(digits=(1,))[:60]
    >>> asked = {"metrics": "label:carry", "n_permutations": 19}
    >>> parts = [ls.score_part(model, part, task, **asked) for part in (task[:20], task[20:])]
    >>> (parts[0] + parts[1]).scores(task).n_examples
    60
    """
    summed = sum_up(
        model,
        examples,
        here,
        metrics=metrics,
        at=at,
        position=position,
        layers=layers,
        neurons=neurons,
        prompt=prompt,
        given=given,
        baseline=baseline,
        exchange=exchange,
        n_permutations=n_permutations,
        n_controls=n_controls,
        n_rotations=0,
        seed=seed,
        chat=chat,
        precision=precision,
        exploratory=exploratory,
    )
    moments, layout = summed.moments, summed.columns.layout
    sums = {name: getattr(moments, name) for name in _SUMS if getattr(moments, name) is not None}
    sums["weight"] = torch.tensor(moments.weight, dtype=torch.float64)
    ids = set(field_of(here, "id"))
    marks = layout.block("marks") if layout.n_marks else None
    part = PartialScores(
        metrics=tuple(metric.name for metric in summed.wanted),
        known=tuple(metric.name for metric in summed.wanted if metric.known),
        layer=summed.units[0],
        neuron=summed.units[1],
        positions=summed.source.labels,
        site=summed.source.site.name,
        sums={name: tensor.cpu() for name, tensor in sums.items()},
        marks=None if marks is None else (marks.start, marks.stop),
        values=summed.values,
        read=torch.tensor([name in ids for name in field_of(examples, "id")]),
        exchange=exchange,
        whole_layers=neurons is None,
        notes=tuple(summed.notes),
        exploratory=summed.exploratory,
        firing={
            name: getattr(summed.firing, name).clone()
            for name in _COUNTS
            if summed.firing is not None
        },
        provenance=summed.provenance,
    )
    return part
