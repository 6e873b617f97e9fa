"""`Stability`: what several runs of one analysis found, against each other and against the whole.

`compare_runs` makes it of one `Found` per run.
"""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.resampling.found import Found
from lens_skills.results import Result
from lens_skills.scoring import EXPLORATORY
from lens_skills.stats.intervals import share_interval, wilson_interval
from lens_skills.stats.set_overlap import Shared, compare_sets, rarely_chosen_by_chance

SHOWN = 10  # names on the card
OFTEN = 0.9  # of the runs: what is called to return
NOT_TRIED = "not tried"


@dataclass(frozen=True, eq=False)
class Stability(Result):
    """What an analysis finds on parts of its groups, or in other words, and what of it returns.

    Printing it shows one card.

    Attributes:
        kind: What was found: ``"selection"``, ``"study"``, ``"verdict"``, ``"circuit"`` or
            ``"names"``.
        over: ``"groups"`` or ``"paraphrases"``.
        runs: The name of each run. Of paraphrases, the first is the whole task as it is.
        n_groups, n_groups_run: Of the whole task and of each run.
        names: All that was found in any run or in the whole: most often found first.
        in_whole: Which of them the whole task finds.
        found: In which runs each was found.
        ruled: What has a word in the whole: neurons of a verdict (a study has one), tested edges.
        whole_words: Its word there.
        words: Its word in each run; ``""`` where it was not tried in that run.
        numbers, whole_numbers: Further numbers in each run and in the whole, by name: the
            unexplained share of a circuit. NaN where a run has none.
        pairs: Places of two runs that are compared. Over groups, no group is in both; where
            ``disjoint`` is False, the runs share some. Over paraphrases, all pairs.
        disjoint: Whether the runs of each pair share no group.
        shared: How many names both find.
        jaccard: Those over the names in either, 0 to 1.
        overlap: Those over the names of the smaller set, 0 to 1 (the overlap coefficient); NaN
            where one is empty.
        expected: Of ``shared``, by chance: sets of these sizes drawn at random, as many in each
            layer where layers are known, among all that could be found (for verdicts and circuits:
            among what was tried in both runs). NaN where that number is not known.
        kappa: Agreement beyond chance of each pair, 0 to 1 and below 0; see `Shared.kappa`.
        p: Chance that random sets share as many, names taken for independent of each other. NaN
            where the runs share groups, as data in common make sets alike too.
        population: How many could be found, where it is known.
        by_layer: Whether chance keeps the number found in each layer.
        notes: What a reader must know before quoting a number.
        exploratory: True where one of the results is.
        provenance: Task, seed and versions behind the numbers.
    """

    kind: str
    over: str
    runs: tuple[str, ...]
    n_groups: int
    n_groups_run: int
    names: tuple[str, ...]
    in_whole: Bool[Tensor, " name"]
    found: Bool[Tensor, "run name"]
    ruled: tuple[str, ...]
    whole_words: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    numbers: dict[str, Float[Tensor, " run"]]
    whole_numbers: dict[str, float]
    pairs: Int[Tensor, "pair 2"]
    disjoint: bool
    shared: Int[Tensor, " pair"]
    jaccard: Float[Tensor, " pair"]
    overlap: Float[Tensor, " pair"]
    expected: Float[Tensor, " pair"]
    kappa: Float[Tensor, " pair"]
    p: Float[Tensor, " pair"]
    population: int | None
    by_layer: bool
    notes: tuple[str, ...] = ()
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> Float[Tensor, " name"]:
        """In which share of the runs each name was found, 0 to 1."""
        return self.found.double().mean(dim=0)

    def returning(self, at_least: float = OFTEN) -> list[str]:
        """The names found in at least this share of the runs."""
        kept = (self.share >= at_least - 1e-12).nonzero()[:, 0].tolist()
        return [self.names[place] for place in kept]

    def returning_by_chance(self, at_least: float = OFTEN) -> float:
        """At most how many of `returning` are expected to be chosen no more often than average.

        See `lens_skills.stats.set_overlap.rarely_chosen_by_chance`. NaN where the runs are no
        disjoint halves, or the population is not known.
        """
        if not self.disjoint or self.population is None:
            return float("nan")
        mean_size = float(self.found.sum(dim=1).double().mean())
        return rarely_chosen_by_chance(mean_size, self.population, at_least)

    @property
    def p_pairs(self) -> float:
        """One p for all pairs: twice their median, at most 1; NaN where there is none.

        Valid however the pairs depend on each other (Meinshausen, Meier & Bühlmann 2009).
        """
        known = self.p[~self.p.isnan()]
        return min(1.0, 2 * float(known.quantile(0.5))) if len(known) else float("nan")

    def words_that_stay(self) -> dict[str, float]:
        """Of all words of the whole, over all other runs: stay, low, high, chance, not_tried.

        All are shares. ``low`` and ``high`` are the 95 % interval over neurons or edges (exact,
        each a cluster); ``chance`` is the share that would stay were each run's words dealt to the
        neurons at random. Empty without words.
        """
        rows = self._again()
        if not self.ruled or not rows:
            return {}
        same = [[float(a == b) for a, b in zip(self.whole_words, row, strict=True)] for row in rows]
        low, high = share_interval(
            torch.tensor(same).double().reshape(-1), [*self.ruled] * len(rows)
        )
        whole, n = Counter(self.whole_words), len(self.ruled)
        chance = [sum(whole[word] * k for word, k in Counter(row).items()) / n**2 for row in rows]
        missing = sum(row.count("") for row in rows) / (n * len(rows))
        return {
            "stay": float(torch.tensor(same).double().mean()),
            "low": float(low),
            "high": float(high),
            "chance": sum(chance) / len(rows),
            "not_tried": missing,
        }

    def _again(self) -> list[tuple[str, ...]]:
        """The words of the runs that are not the whole itself."""
        return list(self.words[1:] if self.over == "paraphrases" else self.words)

    def frame(self) -> pd.DataFrame:
        """One row per name, most often found first.

        Columns: name, in_whole, runs (in how many it was found), share, low and high (its 95 %
        interval over further draws of the same groups, Wilson; NaN over paraphrases, which are no
        draw), and where there are words: word (in the whole), word_stays
        (share of the other runs).
        """
        n = len(self.runs)
        nothing = (float("nan"), float("nan"))

        def ends_of(share: float) -> tuple[float, float]:
            return wilson_interval(share, n) if self.over == "groups" else nothing

        ends = [ends_of(share) for share in self.share.tolist()]
        frame = pd.DataFrame(
            {
                "name": list(self.names),
                "in_whole": self.in_whole.numpy(),
                "runs": self.found.sum(dim=0).numpy(),
                "share": self.share.numpy(),
                "low": [low for low, _ in ends],
                "high": [high for _, high in ends],
            }
        )
        if not self.ruled:
            return frame
        words = dict(zip(self.ruled, self.whole_words, strict=True))
        rows = self._again()
        stays = {
            name: sum(row[place] == words[name] for row in rows) / max(len(rows), 1)
            for place, name in enumerate(self.ruled)
        }
        # Neurons without an effect are found in no run, and their word is a finding all the same.
        found = set(self.names)
        rest = [name for name in self.ruled if name not in found]
        low, high = ends_of(0.0)
        more = pd.DataFrame(
            [
                {"name": name, "in_whole": False, "runs": 0, "share": 0.0, "low": low, "high": high}
                for name in rest
            ],
            columns=frame.columns,
        )
        if rest:
            frame = more if frame.empty else pd.concat([frame, more], ignore_index=True)
        return frame.assign(
            word=[words.get(name, "") for name in frame["name"]],
            word_stays=[stays.get(name, float("nan")) for name in frame["name"]],
        )

    def overlaps(self) -> pd.DataFrame:
        """One row per pair of runs: one, other, shared, jaccard, overlap, expected, kappa, p."""
        columns: dict[str, Any] = {
            "one": [self.runs[place] for place in self.pairs[:, 0].tolist()],
            "other": [self.runs[place] for place in self.pairs[:, 1].tolist()],
        }
        for name in ("shared", "jaccard", "overlap", "expected", "kappa", "p"):
            columns[name] = getattr(self, name).numpy()
        return pd.DataFrame(columns)

    def changes(self) -> pd.DataFrame:
        """How often each word of the whole became which: one row per pair, word again count."""
        counts = Counter(
            (before, after or NOT_TRIED)
            for row in self._again()
            for before, after in zip(self.whole_words, row, strict=True)
        )
        rows = [
            {"word": before, "again": after, "count": count}
            for (before, after), count in counts.most_common()
        ]
        return pd.DataFrame(rows, columns=["word", "again", "count"])

    def readable_files(self) -> dict[str, str]:
        """The card and the two tables, to read without this package."""
        return {
            "card.txt": f"{self!r}\n",
            "names.csv": self.frame().to_csv(index=False),
            "overlaps.csv": self.overlaps().to_csv(index=False),
        }

    def __repr__(self) -> str:
        return "\n".join(
            textwrap.fill(line, 80, subsequent_indent="  ", break_long_words=False)
            for line in card_lines(self)
        )


def compare_runs(
    whole: Found,
    each: Sequence[Found],
    pairs: Sequence[tuple[int, int]],
    *,
    disjoint: bool,
    **about: Any,
) -> Stability:
    """All runs against each other and against the whole; ``about``: further fields, as they are."""
    times = Counter(name for run in each for name in run.names)
    mine = set(whole.names)
    names = sorted({*times, *mine}, key=lambda name: (-times[name], name not in mine, name))
    ruled = tuple(whole.words)
    compared = [_compare(each[one], each[other], whole) for one, other in pairs]
    sizes = [[len(each[one].names), len(each[other].names)] for one, other in pairs]
    smaller = torch.tensor(sizes).reshape(-1, 2).min(dim=1).values.double()
    shared = torch.tensor([found.count for found in compared], dtype=torch.long)
    known = _known(whole)
    numbers = {key: [run.numbers.get(key, float("nan")) for run in each] for key in whole.numbers}
    columns = {
        name: torch.tensor([getattr(found, name) for found in compared], dtype=torch.float64)
        for name in ("jaccard", "expected", "kappa", "p")
    }
    for name in ("expected", "kappa", "p"):
        if not known or (name == "p" and not disjoint):
            columns[name] = torch.full_like(columns[name], torch.nan)
    return Stability(
        kind=whole.kind,
        names=tuple(names),
        in_whole=torch.tensor([name in mine for name in names], dtype=torch.bool),
        found=torch.tensor(
            [[name in run.names for name in names] for run in each], dtype=torch.bool
        ).reshape(len(each), len(names)),
        ruled=ruled,
        whole_words=tuple(whole.words.values()),
        words=tuple(tuple(run.words.get(name, "") for name in ruled) for run in each),
        numbers={key: torch.tensor(row, dtype=torch.float64) for key, row in numbers.items()},
        whole_numbers=dict(whole.numbers),
        pairs=torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2),
        disjoint=disjoint,
        shared=shared,
        overlap=shared / smaller,
        population=None if whole.population is None else sum(whole.population.values()),
        exploratory=any(found.exploratory for found in (whole, *each)),
        by_layer=whole.population is not None and "" not in whole.population,
        **columns,
        **about,
    )


def _known(whole: Found) -> bool:
    return whole.tried is not None or whole.population is not None


def _compare(one: Found, other: Found, whole: Found) -> Shared:
    """What two runs share, and what chance would."""
    if whole.tried is None:
        population = whole.population or {"": 1}
        layer = whole.layer if whole.population else (lambda name: "")
        sets = [[(layer(name), name) for name in run.names] for run in (one, other)]
        if whole.population is None:
            population = {"": len({*one.names, *other.names})}
        return compare_sets(sets[0], sets[1], population)
    both = set(one.tried or ()) & set(other.tried or ())
    sets = [[(0, name) for name in run.names if name in both] for run in (one, other)]
    inside = compare_sets(sets[0], sets[1], {0: len(both)})
    # Chance decides among what both tried; the sizes are those of the whole sets.
    return Shared(inside.count, len({*one.names, *other.names}), inside.expected, inside.p)


def card_lines(found: Stability) -> list[str]:
    """The card's lines, the most telling first."""
    unit = "wordings" if found.over == "paraphrases" else "halves" if found.disjoint else "samples"
    lines = [EXPLORATORY] if found.exploratory else []
    lines += [_title(found, unit), _returning_line(found, unit)]
    bound = found.returning_by_chance()
    if bound == bound and found.returning():
        lines.append(
            f"of the {len(found.returning())} in all that do, neurons that a half picks no more "
            f"often than the average one: at most {bound:.2g} expected"
        )
    lines += [*_overlap_lines(found, unit), *_word_lines(found, unit)]
    for name, values in found.numbers.items():
        seen = values[~values.isnan()]
        if len(seen):
            lines.append(
                f"{name}: {found.whole_numbers[name]:.0%} in the whole, "
                f"{float(seen.min()):.0%} to {float(seen.max()):.0%} over {unit}"
            )
    rows = found.frame().to_dict("records")
    width = max((len(row["name"]) for row in rows[:SHOWN]), default=0)
    if rows:
        lines += ["", *(_line(row, len(found.runs), width) for row in rows[:SHOWN])]
    if len(rows) > SHOWN:
        lines.append(f"  … and {len(rows) - SHOWN} more in .frame()")
    if rows and found.over == "groups":
        lines.append(
            f"  in brackets: 95 % interval of each over further {unit} of these groups; other "
            "groups would add to it"
        )
    return lines + [f"note: {note}" for note in found.notes]


def _title(found: Stability, unit: str) -> str:
    if found.over == "paraphrases":
        return f"{found.kind} in {len(found.runs)} wordings: {', '.join(found.runs)}"
    pairs = "two and two disjoint" if found.disjoint else "with groups in common"
    return (
        f"{found.kind} on {len(found.runs)} {unit} of the groups ({found.n_groups_run} of "
        f"{found.n_groups} each), {pairs}"
    )


def _returning_line(found: Stability, unit: str) -> str:
    mine, others = found.share[found.in_whole], int((~found.in_whole).sum())
    line = f"{len(mine)} found in the whole task"
    if len(mine):
        often, seldom = int((mine >= OFTEN - 1e-12).sum()), int((mine < 0.5).sum())
        line += f": {often} of them in {OFTEN:.0%} of the {unit}, {seldom} in fewer than half"
    return line + (f"; {others} others found in some" if others else "")


def _overlap_lines(found: Stability, unit: str) -> list[str]:
    if not len(found.pairs):
        return []
    size = float(found.found.sum(dim=1).double().mean())
    line = (
        f"two {'disjoint ' if found.disjoint else ''}{unit} find {size:.3g} each and share "
        f"{float(found.shared.double().mean()):.3g} (Jaccard {float(found.jaccard.mean()):.2f})"
    )
    if bool(found.expected.isnan().all()):
        return [line, "  by chance: unknown; say among how many they are chosen (among=…)"]
    line += f"; by chance {float(found.expected.mean()):.2g}"
    lines = [line + (" with as many in each layer" if found.by_layer else "")]
    kappa = found.kappa[~found.kappa.isnan()]
    if len(kappa):
        lines.append(
            f"  kappa {float(kappa.mean()):.2f}, pairs {float(kappa.min()):.2f} to "
            f"{float(kappa.max()):.2f} (0 by chance, 1 equal sets)"
        )
    if found.p_pairs == found.p_pairs:
        lines.append(
            f"  p = {found.p_pairs:.2g} for all {len(found.pairs)} pairs (twice their median), "
            "names taken as independent"
        )
    return lines


def _word_lines(found: Stability, unit: str) -> list[str]:
    words = found.words_that_stay()
    if not words:
        return []
    what = "edges" if found.kind == "circuit" else "neurons"
    missing = f", {words['not_tried']:.0%} were not tried again" if words["not_tried"] else ""
    return [
        f"words: {words['stay']:.0%} [{words['low']:.0%}, {words['high']:.0%}] stay over all "
        f"{unit} (95 % interval over {len(found.ruled)} {what}); dealt at random "
        f"{words['chance']:.0%} would{missing}"
    ]


def _line(row: dict[str, Any], n_runs: int, width: int) -> str:
    line = f"  {row['name']:<{width}}  {row['runs']} of {n_runs}"
    if row["low"] == row["low"]:
        line += f" [{row['low']:.0%}, {row['high']:.0%}]"
    if row.get("word"):
        return f"{line} · {row['word']}, stays in {row['word_stays']:.0%}"
    return line if row["in_whole"] else f"{line} · not in the whole"
