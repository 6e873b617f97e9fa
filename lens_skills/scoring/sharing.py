"""What few labels of one task borrow from scores of other tasks: `score(…, share=)`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.components import unit_name
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.scoring.design_matrix import N_MARKS
from lens_skills.scoring.leakage import shared
from lens_skills.scoring.scores import MetricScores, Scores, Sharing
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.stats.shrinkage import fit_shared_prior, posterior

# Of a correlation, so that its atanh is finite.
_LARGEST = 1 - 1e-9

Other = Scores | MetricScores


def check_share(
    share: Sequence[Other],
    source: ActivationReader,
    metrics: Sequence[Metric],
    examples: Sequence[Example],
    exploratory: bool,
) -> bool:
    """Whether tasks have examples in common, which is refused unless ``exploratory``.

    Refuses too scores of another model, site, position or way of reading, without intervals,
    without a counterpart of a metric, and without a neuron.
    """
    if not share:
        return False
    names = [metric.name for metric in metrics]
    task = getattr(examples, "name", "examples")
    sets = [(task, frozenset(field_of(examples, "id")), frozenset(field_of(examples, "group")))]
    again = False
    for place, one in enumerate(share):
        scores = whole(one)
        where = f"share[{place}] ({_task(scores)})"
        about: Mapping[str, Any] = scores.provenance
        told = [
            ("model", about.get("model_fingerprint"), source.about["model_fingerprint"]),
            ("site", scores.site, source.site.name),
            ("positions", scores.positions, source.labels),
            ("chat", about.get("chat", False), source.about["chat"]),
            ("precision", about.get("precision"), source.about.get("precision")),
        ]
        for what, found, wanted in told:
            if found != wanted:
                raise LensSkillsError(
                    f"{where} was scored with another {what}, {found!r}, than is asked for here, "
                    f"{wanted!r}. Neurons are shared at one place of one model: score both alike."
                )
        if scores.n_groups < FEWEST_GROUPS:
            raise LensSkillsError(
                f"{where} has {scores.n_groups} groups: {FEWEST_GROUPS} at least are needed to "
                "know how far its r can be trusted. Score it on more."
            )
        if isinstance(one, MetricScores) and len(names) != 1:
            raise LensSkillsError(
                f"{where} is one metric, {one.metric!r}, for {len(names)} metrics here "
                f"({', '.join(names)}). Score one at a time, or give scores that hold the same "
                "metrics."
            )
        if isinstance(one, Scores) and (missing := [n for n in names if n not in one.metrics]):
            raise LensSkillsError(
                f"the metric {missing[0]!r} has no counterpart in {where}, which holds "
                f"{', '.join(one.metrics)}. Score it there too, or name its counterpart: "
                f"share=[other[{one.metrics[0]!r}]]."
            )
        lacks = _places(scores, source.layer, source.neuron) < 0
        if bool(lacks.any()):
            first = int(lacks.nonzero()[0])
            unit = int(source.layer[first]), int(source.neuron[first])
            name = unit_name(*unit, source.site.name)
            raise LensSkillsError(
                f"{where} does not hold {name}. Score the same layers and neurons in every task."
            )
        own = (_task(scores), frozenset(scores.example_ids), frozenset(scores.groups))
        for other in sets:
            # A group's name says the same only within a task.
            alike = own[2] if own[0] == other[0] else ()
            what = shared(own[1], alike, other[1], other[2])
            if what and not exploratory:
                raise LensSkillsError(
                    f"{where} and {other[0] if other is not sets[0] else 'the examples'} share "
                    f"{what}: the same labels would count twice. Share scores of other tasks, or "
                    "of groups of their own (task.split(…)), or say exploratory=True to mark the "
                    "result."
                )
            again |= bool(what)
        sets.append(own)
    return again


def whole(one: Other) -> Scores:
    """The pass behind scores of one metric, or of several.

    Raises:
        LensSkillsError: Something that is no scores.
    """
    if isinstance(one, MetricScores):
        return one.scores
    if not isinstance(one, Scores):
        raise LensSkillsError(
            f"share takes scores of other tasks, as `score` returns them, not a "
            f"{type(one).__name__}."
        )
    return one


def shrink(scores: Scores, share: Sequence[Other]) -> Scores:
    """The scores with every r drawn towards what the same neuron does in the other tasks.

    z = atanh r ~ N(θ_nt, s_t²), θ_nt ~ N(μ_n, τ_t²), μ_n ~ N(0, ω²); see `stats.shrinkage`. s_t² is
    the mean squared standard error behind the intervals of r, which are robust to clusters: 1 /
    (N - 3) with N the effective number of independent examples.
    """
    if not share:
        return scores
    if scores.n_groups < FEWEST_GROUPS:
        raise LensSkillsError(
            f"{scores.n_groups} groups are too few to share: {FEWEST_GROUPS} at least are needed "
            "to know how far r can be trusted. Label examples of more groups, or leave share= out."
        )
    arrays: dict[str, list[Tensor]] = {"shrunk_r": [], "shrunk_low": [], "shrunk_high": []}
    about: dict[str, Sharing] = {}
    for name in scores.metrics:
        views = [scores[name], *(one if isinstance(one, MetricScores) else one[name]
                                 for one in share)]  # fmt: skip
        rows = []
        for view in views:
            places = _places(view.scores, scores.layer, scores.neuron)
            z = torch.atanh(view.r[:, places].clamp(-_LARGEST, _LARGEST))
            rows.append(torch.where(view.scores.excluded[places], torch.nan, z).flatten())
        z = torch.stack(rows)
        variances = torch.tensor([sampling_variance(view) for view in views], dtype=torch.float64)
        everywhere = torch.isfinite(z).all(0)
        prior = fit_shared_prior(z[:, everywhere], variances)
        mean, sd = posterior(z, variances, prior)
        left_out = scores.excluded.repeat(len(scores.positions))
        for key, ends in (("r", 0.0), ("low", -_NORMAL), ("high", _NORMAL)):
            numbers = torch.where(left_out, 0.0, torch.tanh(mean + ends * sd))
            arrays[f"shrunk_{key}"].append(numbers.reshape(scores.r.shape[1:]))
        about[name] = Sharing(
            tasks=tuple(_task(view.scores) for view in views[1:]),
            metrics=tuple(view.metric for view in views[1:]),
            common=prior.common,
            own=prior.own,
            n_effective=tuple((3 + 1 / variances).tolist()),
            # The posterior's variance is s² times the share of the own z.
            weight=float(sd[everywhere].square().mean() / variances[0]),
        )
    kept = [
        {"task": _task(one), "split": one.provenance.get("split", "all"),
         "example_ids": list(one.example_ids), "groups": list(one.groups)}
        for one in map(whole, share)
    ]  # fmt: skip
    return replace(
        scores,
        **{key: torch.stack(parts) for key, parts in arrays.items()},
        sharing=about,
        provenance={**scores.provenance, "share": kept},
    )


_NORMAL = 1.959963984540054


def sampling_variance(view: MetricScores) -> float:
    """The mean squared standard error of atanh r behind the intervals of one metric's r."""
    from scipy.stats import t as student

    scores = view.scores
    freedom = max(scores.effective_groups - 1, 1.0)
    if scores.n_groups > N_MARKS:
        freedom = min(freedom, float(N_MARKS))
    reach = float(student.ppf(0.975, freedom))
    ends = [torch.atanh(end.clamp(-_LARGEST, _LARGEST)) for end in (view.low, view.high)]
    error: Float[Tensor, "pos unit"] = (ends[1] - ends[0]) / (2 * reach)
    mean = float(error[:, ~scores.excluded].square().mean())
    if not 0 < mean < math.inf:
        raise LensSkillsError(
            f"the r of {view.metric} ({_task(scores)}) have no standard error to trust them by. "
            "Score it on more groups."
        )
    return mean


def _places(
    scores: Scores, layer: Int[Tensor, " unit"], neuron: Int[Tensor, " unit"]
) -> Int[Tensor, " unit"]:
    """The place of each neuron among the scores' own; -1 where they do not hold it."""
    if scores.layer.equal(layer) and scores.neuron.equal(neuron):
        return torch.arange(len(layer))
    units = zip(layer.tolist(), neuron.tolist(), strict=True)
    return torch.tensor([scores.places.get(unit, -1) for unit in units])


def _task(scores: Scores) -> str:
    return str(scores.provenance.get("task", "examples"))
