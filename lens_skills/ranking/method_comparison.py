"""The result of `compare_methods`: a `MethodComparison` with one `MethodRow` per ranking.

Its shares of hits have intervals over neurons and groups, its differences are paired, and its card
says what each number is.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.interventions.verdict import OPPOSES, SUPPORTS
from lens_skills.ranking.causal_hits import LEVEL, EffectTests, count_known, parse_roles
from lens_skills.ranking.method_shares import difference_interval, share_of_hits
from lens_skills.ranking.specificity import SkillTests
from lens_skills.results import Result
from lens_skills.scoring import EXPLORATORY

RANDOM, ROTATED = "random", "rotated basis"

BASELINES = (RANDOM, ROTATED)
"""The rows every comparison has: what any method must beat."""


@dataclass(frozen=True, eq=False)
class MethodRow:
    """The strongest neurons of one ranking, tried.

    Attributes:
        methods: The methods that give it: several where they rank alike; ``"random"`` and
            ``"rotated basis"`` are the rows to beat.
        tests: Of its k neurons; of ``"random"`` of ``n_random`` times as many.
        seconds: What ranking took, by the first of the methods.
        agreement: Mean rank correlation with the other rows; None for the rows to beat, and
            where there is no other.
        common: Variance of the share that the resampled groups make (`common_covariance`).
        found: How many of the k neurons of largest |effect| it names; None where not all were
            swept, and for the rotated basis.
        found_common: Of ``found`` / k, as ``common``.
        known: For each role in ``truth``: how many of its neurons are in the list.
    """

    methods: tuple[str, ...]
    tests: EffectTests
    seconds: float
    agreement: float | None
    common: float = 0.0
    found: int | None = None
    found_common: float = 0.0
    known: Mapping[str, float] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The names together, such as ``"pearson = smd = f"``."""
        return " = ".join(self.methods)

    @property
    def n(self) -> int:
        """How many neurons were tried."""
        return len(self.tests.names)

    @property
    def hits(self) -> int:
        """How many of them have a causal effect."""
        return self.tests.hits

    @property
    def share(self) -> float:
        """Hits among those tried; 0 where none was."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share, over neurons like these and groups (`share_of_hits`)."""
        return share_of_hits(self.hits, self.n, self.common)

    @property
    def mean_effect(self) -> float:
        """Mean over the neurons of |mean effect|, in the causal metric's unit."""
        return float(self.tests.effect.abs().mean()) if self.n else 0.0

    def count(self, verdict: str) -> int:
        """On how many neurons this is the verdict."""
        return self.tests.verdicts.count(verdict)


@dataclass(frozen=True, eq=False)
class MethodComparison(Result):
    """Several methods' strongest neurons, all tried on the same examples.

    Does not show: that a method is better in general. It is one model, one task and one k
    (`differences_over_tasks` counts over several); the lists are those of one split ranked on.

    Attributes:
        rows: One per ranking, by share of hits; the rows to beat come last.
        k: How many neurons each method may name.
        metric, causal_metric, unit: What was ranked by; what was watched, and its unit.
        do: The edit in words.
        floor: No effect below it counts; ``floor_from`` says where it is from.
        deltas: By layer (``"L3"``), where some |effect| is beyond the floor: the smallest effect
            that counts there; at least the floor.
        n_controls: Random neurons of each such layer that its effects are held against.
        n_swept, n_hits: Of all neurons, where all were swept; None otherwise.
        methods: The rows that ranked, in the order of the matrices.
        spearman: Rank correlation of their strengths over all neurons.
        jaccard: Overlap of their k strongest.
        common: Covariance of the rows' shares that the resampled groups make, in the order of
            ``rows``.
        left_out: Methods that could not rank here, and why.
        site, position: Where neurons were read and edited.
        n_explore, n_examples, n_groups: Of the splits ranked on and tried on.
        effective_groups: How many equal groups say as much (1 to ``n_groups``).
        exploratory: True where examples were used again.
        truth: The known neurons, by role: see `against`.
        specific: Of every neuron that a row names: whether it is a skill hit, a cause of this task
            more than of others; None where no contrast was asked for.
        provenance: Model, task, splits, seed and versions behind the numbers.
    """

    rows: tuple[MethodRow, ...]
    k: int
    metric: str
    causal_metric: str
    unit: str
    do: str
    floor: float
    floor_from: str
    deltas: Mapping[str, float]
    n_controls: int
    n_swept: int | None
    n_hits: int | None
    methods: tuple[str, ...]
    spearman: Float[Tensor, "method other"]
    jaccard: Float[Tensor, "method other"]
    common: Float[Tensor, "row row2"]
    left_out: Mapping[str, str]
    site: str
    position: str
    n_explore: int
    n_examples: int
    n_groups: int
    effective_groups: float
    exploratory: bool = False
    truth: Mapping[str, Sequence[str]] = field(default_factory=dict)
    specific: SkillTests | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def all_methods(self) -> tuple[str, ...]:
        """Every method that has a row, by its own name."""
        return tuple(name for row in self.rows for name in row.methods)

    def __getitem__(self, method: str) -> MethodRow:
        for row in self.rows:
            if method == row.method or method in row.methods:
                return row
        if method in self.left_out:
            raise LensSkillsError(f"{method!r} was left out: {self.left_out[method]}")
        raise LensSkillsError(
            f"no method {method!r} here. There are: {', '.join(self.all_methods)}."
        )

    def against(self, truth: Mapping[str, Sequence[str]] | Sequence[str]) -> "MethodComparison":
        """The same, with how many of the neurons that are known beforehand each method found.

        Args:
            truth: Names of neurons that carry the skill, or a mapping from role to names
                (``{"skill": […], "decoy": […]}``), the skill first: recall and precision are about
                the first role, the others are counted.

        Raises:
            LensSkillsError: A role without a neuron.
        """
        roles = parse_roles(truth)
        rows = tuple(
            row if ROTATED in row.methods else replace(row, known=count_known(row.tests, roles))
            for row in self.rows
        )
        return replace(self, truth=roles, rows=rows)

    def skill_hits(self, method: str) -> int | None:
        """How many of a row's neurons are skill hits; None where nobody asked, or of directions."""
        row = self[method]
        if self.specific is None or ROTATED in row.methods:
            return None
        return len(self.specific.skill_names & set(row.tests.names))

    def difference(self, method: str, other: str) -> tuple[float, float, float]:
        """The share of hits of one method minus another's, with its 95 % interval.

        Paired: the same examples, and neurons that both name cancel. Over neurons such as either
        names beside the other, and over groups; of this pair by itself. See `difference_interval`.
        """
        rows = [self[method], self[other]]
        a, b = (self.rows.index(row) for row in rows)
        common = float(self.common[a, a] + self.common[b, b] - 2 * self.common[a, b])
        words = [dict(zip(row.tests.names, row.tests.is_hit.tolist(), strict=True)) for row in rows]
        return difference_interval(*words, common=common)

    def differences(self) -> pd.DataFrame:
        """Every two rows: method other difference low high and, of their hits, shared.

        ``difference`` is the share of hits of ``method`` minus that of ``other``; [low, high] its
        95 % interval, paired, over neurons and groups, of each pair by itself.
        """
        found = []
        for place, one in enumerate(self.rows):
            for other in self.rows[place + 1 :]:
                value, low, high = self.difference(one.method, other.method)
                both = set(one.tests.hit_names) & set(other.tests.hit_names)
                entry = {"method": one.method, "other": other.method, "difference": value}
                found.append(entry | {"low": low, "high": high, "shared": len(both)})
        return pd.DataFrame(found)

    def frame(self) -> pd.DataFrame:
        """One row per ranking.

        Columns: method n hits share low high difference difference_low difference_high supports
        opposes mean_effect agreement seconds; ``difference`` is the first row's share minus this
        one's (`difference`). With contrasts also skill_hits (see the method of that name). Where
        all neurons were swept, recall_at_k recall_low recall_high: the
        share it names of the k neurons of largest |effect|. With known neurons recall precision
        (of the first role) and one column per further role.
        """
        rows = []
        for row in self.rows:
            low, high = row.interval
            less = (0.0, 0.0, 0.0)
            if row is not self.rows[0]:
                less = self.difference(self.rows[0].method, row.method)
            entry: dict[str, Any] = {
                "method": row.method,
                "n": row.n,
                "hits": row.hits,
                "share": row.share,
                "low": low,
                "high": high,
                **dict(zip(_DIFFERENCE, less, strict=True)),
                "supports": row.count(SUPPORTS),
                "opposes": row.count(OPPOSES),
                "mean_effect": row.mean_effect,
                "agreement": row.agreement,
                "seconds": row.seconds,
            }
            if self.specific is not None:
                entry["skill_hits"] = self.skill_hits(row.method)
            if self.n_swept is not None:
                entry |= dict(zip(_RECALL, self._recall(row), strict=True))
            lists = self._lists(row)
            for place, (role, names) in enumerate(self.truth.items()):
                known = row.known.get(role)
                if place == 0:
                    entry["recall"] = None if known is None else known / len(names) / lists
                    entry["precision"] = None if known is None or not row.n else known / row.n
                else:
                    entry[role] = known
            rows.append(entry)
        return pd.DataFrame(rows)

    def _lists(self, row: MethodRow) -> int:
        """How many lists of k neurons a row holds: several of random neurons."""
        return max(round(row.n / self.k), 1) if RANDOM in row.methods else 1

    def _recall(self, row: MethodRow) -> tuple[float | None, float | None, float | None]:
        if row.found is None:
            return None, None, None
        n = self.k * self._lists(row)  # several random lists are as many chances
        return row.found / n, *share_of_hits(row.found, n, row.found_common)

    def neurons(self) -> pd.DataFrame:
        """One row per method and neuron: method rank name effect low high delta p kept verdict.

        [low, high] and p are of each neuron by itself; see `EffectTests`. With contrasts also
        skill (whether it is a skill hit), relative (its |effect| as a share of the clean metric)
        and the margin: the smallest lower end over the contrasts, see `SkillTests`.
        """
        known: dict[str, dict[str, Any]] = {}
        if self.specific is not None:
            told, margin = self.specific, self.specific.low.amin(dim=0)
            known = {
                name: {"skill": skill, "relative": relative, "margin": least}
                for name, skill, relative, least in zip(
                    told.names, told.is_skill.tolist(), told.relative.tolist(), margin.tolist(),
                    strict=True,
                )
            }  # fmt: skip
        numbers = ("effect", "low", "high", "delta", "p", "kept")
        rows = [
            {
                "method": row.method,
                "rank": rank + 1,
                "name": name,
                **{key: float(getattr(row.tests, key)[rank]) for key in numbers},
                "verdict": row.tests.verdicts[rank],
                **known.get(name, {}),
            }
            for row in self.rows
            for rank, name in enumerate(row.tests.names)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        many = f"{self.n_groups:,} groups"
        if self.effective_groups < 0.9 * self.n_groups:
            many += f" (uneven: worth {self.effective_groups:.0f} equal ones)"
        words = [
            f"{self.metric}: whose neurons have an effect on {self.causal_metric}?",
            f"the {self.k} strongest neurons of each method, each edited alone · {self.site} at "
            f"{self.position}",
            f"ranked on {self.n_explore:,} examples, tried on {self.n_examples:,} in {many}: "
            f"{self.do}",
            self.rule(),
        ]
        lines = [EXPLORATORY] if self.exploratory else []
        for place, text in enumerate(words):
            lines += _wrapped(text, first="" if place == 0 else "  ")
        frame = self.frame()
        lines += ["", *_shares(frame, self.rows[0].method)]
        lines += _wrapped(
            "in [ ]: 95 % intervals over neurons like these and groups. less by: than the first "
            "row, paired, each row by itself. |effect|: mean over the neurons, in "
            f"{self.unit}. random: neurons of all layers read."
        )
        if self.specific is not None:
            lines += ["", *self._skills(frame)]
        if self.n_swept is not None:
            lines += ["", *self._exhaustive(frame)]
        if self.truth:
            lines += ["", *self._known(frame)]
        for why in self.left_out.values():
            lines += _wrapped(f"left out: {why}")
        return "\n".join(lines)

    def rule(self) -> str:
        """What a hit is, in a sentence."""
        declared = self.floor_from == "declared"
        ends = sorted(self.deltas.values()) or [self.floor]
        span = f"{ends[0]:.3g}" if ends[0] == ends[-1] else f"{ends[0]:.3g} to {ends[-1]:.3g}"
        source = "declared" if declared else (
            f"by layer: {self.floor_from}, or the 95th percentile of random neurons where larger"
        )  # fmt: skip
        drawn = f"{self.n_controls:,} " if self.deltas else ""
        return (
            f"a hit: its own 95 % interval beyond δ = {span} {self.unit} ({source}), and p <= "
            f"{LEVEL:g} among {drawn}random neurons of its layer; each neuron by itself, whatever "
            "list names it"
        )

    def _skills(self, frame: pd.DataFrame) -> list[str]:
        assert self.specific is not None
        lines = _wrapped(
            "a skill hit: a hit whose share of the clean metric is beyond chance larger than its "
            f"share of every contrast's: {', '.join(self.specific.contrasts)} (each 95 % interval "
            "of the difference above 0)"
        )
        cells = [["method", "hits", "skill hits", "supports"]]
        for entry in frame.to_dict("records"):
            if not pd.isna(entry["skill_hits"]):
                numbers = (entry["hits"], int(entry["skill_hits"]), entry["supports"])
                cells.append([entry["method"], *map(str, numbers)])
        return lines + aligned(cells)

    def _exhaustive(self, frame: pd.DataFrame) -> list[str]:
        lines = _wrapped(
            f"all {self.n_swept:,} neurons were tried; hits among them: {self.n_hits:,}. Of the "
            f"{self.k} of largest |effect| each method names, with a 95 % interval over such "
            "neurons and groups:"
        )
        cells = [["method", "named", "recall at k, %"]]
        for row, entry in zip(self.rows, frame.to_dict("records"), strict=True):
            if row.found is None:
                continue
            share, low, high = (entry[name] for name in _RECALL)
            n = self.k * self._lists(row)
            cells.append([row.method, f"{row.found} of {n}", _percent(share, low, high)])
        return lines + aligned(cells)

    def _known(self, frame: pd.DataFrame) -> list[str]:
        roles = list(self.truth)
        lines = _wrapped(f"known neurons: recall and precision are about the role {roles[0]!r}")
        columns = ["recall", "precision", *roles[1:]]
        cells = [["method", *columns]]
        for entry in frame.to_dict("records"):
            numbers = ["" if pd.isna(entry[name]) else f"{entry[name]:.2g}" for name in columns]
            cells.append([entry["method"], *numbers])
        return lines + aligned(cells)


_DIFFERENCE = ("difference", "difference_low", "difference_high")
_RECALL = ("recall_at_k", "recall_low", "recall_high")
_WIDTH = 80


def _wrapped(text: str, first: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent="    ", break_on_hyphens=False
    )


def _percent(value: float, low: float, high: float) -> str:
    """A share and its interval in whole per cents."""
    middle, *ends = (str(round(100 * each)) for each in (value, low, high))
    return f"{middle} [{', '.join(ends)}]"


def _shares(frame: pd.DataFrame, first: str) -> list[str]:
    """The table of shares, with what needs words in words."""
    cells = [["method", "hits", "share, %", "less by, %", "sup/opp", "|effect|"]]
    for entry in frame.to_dict("records"):
        less = ""
        if entry["method"] != first and not pd.isna(entry["difference"]):
            less = _percent(*(entry[name] for name in _DIFFERENCE))
        cells.append(
            [
                entry["method"],
                f"{entry['hits']} of {entry['n']}",
                _percent(entry["share"], entry["low"], entry["high"]),
                less,
                f"{entry['supports']}/{entry['opposes']}",
                f"{entry['mean_effect']:.2g}",
            ]
        )
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the words of a long first cell go on lines of their own."""
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    room = _WIDTH - sum(widths[1:]) - 2 * len(widths)
    widths[0] = min(widths[0], max(room, 12))
    lines = []
    for row in cells:
        names = textwrap.wrap(row[0], widths[0], break_long_words=False) or [""]
        lines += [f"  {name}" for name in names[:-1]]
        padded = [cell.ljust(w) for cell, w in zip([names[-1], *row[1:]], widths, strict=True)]
        lines.append("  " + "  ".join(padded).rstrip())
    return lines
