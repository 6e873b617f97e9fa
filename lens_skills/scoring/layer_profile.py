"""`layer_profile`: a metric layer by layer, beside the model's own answer."""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.scoring.correlations import partial_r
from lens_skills.scoring.leakage import check_match
from lens_skills.scoring.scores import EXPLORATORY, MetricScores, Scores, one_metric

FEW = 20  # examples on which label and answer differ, below which r cannot tell them apart


@dataclass(frozen=True, eq=False)
class LayerProfile(Result):
    """Per layer: how strongly neurons go with a metric, and whether it is the answer they go with.

    Attributes:
        metric, answer: What was correlated; the model's own answer, or None.
        layer: Which layers.
        neurons: Of each layer, how many vary.
        strongest: Largest |r| with the metric, over neurons and positions.
        position: Where that is.
        beyond: Neurons beyond the permutation threshold at any position; -1 without a null.
        answer_strongest: Largest |r| with the answer; NaN without one, as in the next two.
        metric_left: Largest |partial r| with the metric, given the answer.
        answer_left: Largest |partial r| with the answer, given the metric.
        on_errors: Mean of sign(r) times r on the errors, over the neurons of ``beyond``: above 0
            they follow the metric where the model is wrong, below 0 its answer; NaN without any.
        n_examples, n_differ: Examples, and those on which metric and answer differ (-1 without).
        n_errors: Examples of the errors; 0 without.
        exploratory: True where the scores are.
    """

    metric: str
    answer: str | None
    layer: Int[Tensor, " layer"]
    neurons: Int[Tensor, " layer"]
    strongest: Float[Tensor, " layer"]
    position: tuple[str, ...]
    beyond: Int[Tensor, " layer"]
    answer_strongest: Float[Tensor, " layer"]
    metric_left: Float[Tensor, " layer"]
    answer_left: Float[Tensor, " layer"]
    on_errors: Float[Tensor, " layer"]
    n_examples: int
    n_differ: int
    n_errors: int
    exploratory: bool = False

    def frame(self) -> pd.DataFrame:
        """One row per layer, with the numbers of the attributes."""
        names = "layer neurons strongest beyond answer_strongest metric_left answer_left on_errors"
        frame = pd.DataFrame({name: getattr(self, name).numpy() for name in names.split()})
        frame.insert(3, "position", list(self.position))
        return frame

    def __repr__(self) -> str:
        lines = [f"{self.metric} by layer · {self.n_examples:,} examples"]
        if self.exploratory:
            lines.insert(0, EXPLORATORY)
        best = int(self.strongest.argmax())
        beyond = f"beyond the null: {int(self.beyond.sum()):,} neurons"
        lines.append(
            f"  largest |r| {float(self.strongest[best]):.2f} in layer {int(self.layer[best])}; "
            + (beyond if int(self.beyond.min()) >= 0 else "no null was drawn")
        )
        if self.answer is not None:
            alike = f": fewer than {FEW}, so the two cannot be told apart here"
            lines.append(
                f"  {self.answer} differs from it on {self.n_differ:,} examples"
                + (alike if self.n_differ < FEW else "")
            )
            lines += [
                f"  layer {int(layer)}: |r| {r:.2f}, {left:.2f} given the answer; the answer's "
                f"{a:.2f}, {a_left:.2f} given the metric"
                for layer, r, left, a, a_left in zip(
                    self.layer,
                    self.strongest,
                    self.metric_left,
                    self.answer_strongest,
                    self.answer_left,
                    strict=True,
                )
            ]
        if self.n_errors:
            told = ~self.on_errors.isnan()
            lines += [
                f"  layer {int(layer)}: on {self.n_errors:,} errors its neurons follow "
                f"{'the metric' if r > 0 else 'the answer'} (mean r {r:+.2f})"
                for layer, r in zip(self.layer[told], self.on_errors[told].tolist(), strict=True)
            ]
        lines.append("  late layers write the answer itself: a large r there may be the answer")
        return "\n".join(lines)


def layer_profile(
    scores: Scores | MetricScores,
    *,
    answer: str | None = None,
    errors: Scores | MetricScores | None = None,
) -> LayerProfile:
    """A metric layer by layer, held against the model's own answer.

    In late layers a large r with the label may be the answer that the model is about to give. Two
    ways to tell, each of which needs examples on which the model errs:

    - ``answer``: a metric of the same pass that says what the model answered. Partial r, each
      given the other, come from that one pass.
    - ``errors``: the same metric scored on wrongly answered examples, with ``scores`` made on
      rightly answered ones, where metric and answer are the same. There the neurons are chosen,
      and on the errors the sign of r says which of the two they follow.

    Args:
        scores: Of one metric, or one of several: ``scores["label:entailment"]``.
        answer: Name of a metric in the same scores; `model_answer` makes its numbers.
        errors: From a pass over other examples.

    Raises:
        LensSkillsError: Several metrics and none chosen, the metric itself as its answer, or
            errors that share examples with ``scores`` or do not fit them.

    Does not show: where a skill is computed; partial r are as noisy as the differing examples few.
    """
    found = one_metric(scores)
    wrong = None if errors is None else one_metric(errors)
    whole = found.scores
    layers = whole.layer.unique()
    varies = ~whole.excluded
    strength = found.r.abs()
    bar = found.threshold
    beyond = None if bar is None else (strength > bar).any(dim=0) & varies
    none = torch.full((len(layers),), float("nan"), dtype=torch.float64)
    columns = {"answer_strongest": none, "metric_left": none, "answer_left": none}
    n_differ = -1
    if answer is not None:
        strengths = {
            "answer_strongest": whole[answer].r.abs(),
            "metric_left": partial_r(whole, found.metric, answer).abs(),
            "answer_left": partial_r(whole, answer, found.metric).abs(),
        }
        columns = {name: _largest(r, whole.layer, layers) for name, r in strengths.items()}
        n_differ = int((whole.values[found.metric] != whole.values[answer]).sum())
    chosen = [(whole.layer == layer) & varies for layer in layers]
    places = [int(strength[:, whole.layer == layer].amax(dim=1).argmax()) for layer in layers]
    return LayerProfile(
        metric=found.metric,
        answer=answer,
        layer=layers,
        neurons=torch.tensor([int(here.sum()) for here in chosen]),
        strongest=_largest(strength, whole.layer, layers),
        position=tuple(whole.positions[place] for place in places),
        beyond=torch.tensor(
            [-1 if beyond is None else int((beyond & here).sum()) for here in chosen]
        ),
        on_errors=none if wrong is None else _on_errors(found, wrong, beyond, layers),
        n_examples=whole.n_examples,
        n_differ=n_differ,
        n_errors=0 if wrong is None else wrong.scores.n_examples,
        exploratory=whole.exploratory,
        **columns,
    )


def _largest(
    strength: Float[Tensor, "pos unit"], layer: Int[Tensor, " unit"], layers: Int[Tensor, " layer"]
) -> Float[Tensor, " layer"]:
    return torch.stack([strength[:, layer == here].max() for here in layers])


def _on_errors(
    scores: MetricScores,
    errors: MetricScores,
    beyond: Bool[Tensor, " unit"] | None,
    layers: Int[Tensor, " layer"],
) -> Float[Tensor, " layer"]:
    """Per layer, how the neurons beyond the null on the right examples go on the wrong ones."""
    check_match(scores, errors)
    shared = set(scores.scores.example_ids) & set(errors.scores.example_ids)
    if shared:
        raise LensSkillsError(
            f"the errors share {len(shared)} examples with the scores the neurons are chosen on. "
            "Score the rightly answered examples and the wrongly answered ones apart."
        )
    if not torch.equal(scores.scores.layer, errors.scores.layer) or not torch.equal(
        scores.scores.neuron, errors.scores.neuron
    ):
        raise LensSkillsError("the errors were scored on other neurons. Score the same ones.")
    if beyond is None:
        raise LensSkillsError(
            "no null was drawn, so no neurons are chosen to follow. Score with n_permutations > 0."
        )
    here, there = scores.at_strongest(scores.r), scores.at_strongest(errors.r)
    agreement = here.sign() * there
    return torch.stack(
        [agreement[beyond & (scores.scores.layer == layer)].mean() for layer in layers]
    )
