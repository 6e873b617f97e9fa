"""`compare_scores`: several prompts, or seeds, of one metric: do they find the same neurons?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.scoring.leakage import check_seeds
from lens_skills.scoring.scores import MetricScores, Scores
from lens_skills.stats.correlation import spearman
from lens_skills.stats.set_overlap import compare_sets


@dataclass(frozen=True, eq=False)
class ScoreComparison(Result):
    """Every pair of prompts, compared neuron by neuron.

    Attributes:
        metric, site: What was correlated where.
        n_prompts, n_units: How many.
        top: Size of the sets whose overlap is counted.
        pairs: Places of the two prompts.
        rank_r: Spearman's correlation of |r| (each neuron at its strongest position).
        shared: Of the ``top`` strongest, how many both prompts have.
        jaccard: Those over the neurons in either, 0 to 1.
        expected, p: By chance, among all neurons alike.
        expected_by_layer, p_by_layer: By chance, with as many of each layer as the sets have: what
            is left once the prompts merely agree on the layers.
        n_significant: Neurons beyond the permutation null under either prompt; -1 without a null.
        sign_agreement: Share of those whose r has the same sign under both; NaN for none.
        stable: (layer, neuron) beyond the null with one sign under every prompt, strongest first.
        same_examples: Whether all prompts were scored on the same examples.
        exploratory: True where one of the scores is.
        provenance: Of the scores.
    """

    metric: str
    site: str
    n_prompts: int
    n_units: int
    top: int
    pairs: Int[Tensor, "pair 2"]
    rank_r: Float[Tensor, " pair"]
    shared: Int[Tensor, " pair"]
    jaccard: Float[Tensor, " pair"]
    expected: Float[Tensor, " pair"]
    p: Float[Tensor, " pair"]
    expected_by_layer: Float[Tensor, " pair"]
    p_by_layer: Float[Tensor, " pair"]
    n_significant: Int[Tensor, " pair"]
    sign_agreement: Float[Tensor, " pair"]
    stable: Int[Tensor, "k 2"]
    same_examples: bool
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per pair of prompts: one other, then the numbers of the attributes."""
        columns: dict[str, Any] = {"one": self.pairs[:, 0], "other": self.pairs[:, 1]}
        names = (
            "rank_r shared jaccard expected p expected_by_layer p_by_layer n_significant "
            "sign_agreement"
        )
        columns |= {name: getattr(self, name) for name in names.split()}
        return pd.DataFrame({name: tensor.numpy() for name, tensor in columns.items()})

    def __repr__(self) -> str:
        lines = [
            f"{self.metric} · {self.site} · {self.n_prompts} prompts · {self.n_units:,} neurons"
        ]
        for row in self.frame().to_dict("records"):
            signs = (
                f"same sign in {row['sign_agreement']:.0%} of {row['n_significant']:,} significant"
                if row["n_significant"] > 0
                else "no significant neuron"
                if row["n_significant"] == 0
                else "no null, so no significant neuron"
            )
            lines.append(
                "  passes {first} and {second}: {shared} of the {top} strongest in both; by chance "
                "{expected:.1f}, with these layers {expected_by_layer:.1f} (p = {p_by_layer:.2g}); "
                "rank correlation of |r| {rank_r:+.2f}; {signs}".format(
                    **row, first=row["one"] + 1, second=row["other"] + 1, top=self.top, signs=signs
                )
            )
        if bool((self.n_significant >= 0).all()):
            lines.append(
                f"  {len(self.stable):,} neurons significant with one sign in every prompt"
            )
        lines.append(
            "  the p take neurons for independent: correlated ones share more, by chance too"
        )
        if not self.same_examples:
            lines.append("  other examples per prompt: examples differ here as well as prompts")
        return "\n".join(lines)


def compare_scores(
    scores_by_seed: Sequence[Scores], metric: str | None = None, *, top: int = 200
) -> ScoreComparison:
    """Whether several prompts find the same neurons: signs, ranks, and overlap against chance.

    Every neuron stands for its strongest position under each prompt, because the positions of two
    prompts have nothing to do with each other.

    Args:
        scores_by_seed: One pass per prompt, best on the same examples.
        metric: The metric whose r are compared; None for the only one in the scores.
        top: How many of the strongest neurons are taken for a prompt's set.

    Raises:
        LensSkillsError: Fewer than two scores, scores that do not fit together, or the same twice;
            more neurons asked for than half of them.

    Source: overlap against chance, Cohen 1960; Kuncheva 2007.
    Assumes: for p, neurons independent of each other: a bound for how surprising an overlap is.
    """
    views = check_seeds(scores_by_seed, metric, at_least=2)
    first = scores_by_seed[0]
    varies = ~torch.stack([scores.excluded for scores in scores_by_seed]).any(dim=0)
    units = varies.nonzero()[:, 0]
    if not 1 <= top <= len(units) // 2:
        raise LensSkillsError(
            f"top={top}: choose 1 to {len(units) // 2}, half of the {len(units):,} neurons that "
            "vary under every prompt."
        )
    strength, sign, beyond = _per_neuron(views, units)
    layers = first.layer[units]
    population = {int(layer): int((layers == layer).sum()) for layer in layers.unique()}
    members = torch.stack([layers, first.neuron[units]], dim=1)
    order = strength.argsort(dim=1, descending=True, stable=True)[:, :top]
    sets = [[(int(a), int(b)) for a, b in members[row].tolist()] for row in order]
    pairs = list(combinations(range(len(scores_by_seed)), 2))
    rows = []
    for one, other in pairs:
        by_layer = compare_sets(sets[one], sets[other], population)
        plain = compare_sets(
            [(0, int(place)) for place in order[one]],
            [(0, int(place)) for place in order[other]],
            {0: len(units)},
        )
        either = None if beyond is None else beyond[one] | beyond[other]
        same = sign[one] == sign[other]
        count = -1 if either is None else int(either.sum())
        rows.append(
            {
                "rank_r": float(spearman(strength[[one, other]])[0, 1]),
                "shared": by_layer.count,
                "jaccard": by_layer.jaccard,
                "expected": plain.expected,
                "p": plain.p,
                "expected_by_layer": by_layer.expected,
                "p_by_layer": by_layer.p,
                "n_significant": count,
                "sign_agreement": float(same[either].double().mean())
                if either is not None and count
                else float("nan"),
            }
        )
    whole = ("shared", "n_significant")
    numbers: dict[str, Any] = {
        name: torch.tensor(
            [row[name] for row in rows], dtype=torch.long if name in whole else torch.float64
        )
        for name in rows[0]
    }
    stable = torch.zeros(0, 2, dtype=torch.long)
    if beyond is not None:
        kept = (beyond.all(dim=0) & (sign == sign[:1]).all(dim=0)).nonzero()[:, 0]
        kept = kept[strength[:, kept].mean(dim=0).argsort(descending=True, stable=True)]
        stable = members[kept]
    return ScoreComparison(
        metric=views[0].metric,
        site=first.site,
        n_prompts=len(scores_by_seed),
        n_units=len(units),
        top=top,
        pairs=torch.tensor(pairs),
        stable=stable,
        same_examples=len({scores.example_ids for scores in scores_by_seed}) == 1,
        exploratory=any(scores.exploratory for scores in scores_by_seed),
        provenance={"scores": [scores.provenance for scores in scores_by_seed]},
        **numbers,
    )


def _per_neuron(
    views: Sequence[MetricScores], units: Int[Tensor, " unit"]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """|r| and sign at each neuron's strongest position, and whether it is beyond the null."""
    strength, sign, beyond = [], [], []
    for view in views:
        best = view.at_strongest(view.r)[units]
        strength.append(best.abs())
        sign.append(best.sign())
        bar = view.threshold
        if bar is not None:
            beyond.append(best.abs() > bar)
    tested = len(beyond) == len(strength)
    return torch.stack(strength), torch.stack(sign), torch.stack(beyond) if tested else None
