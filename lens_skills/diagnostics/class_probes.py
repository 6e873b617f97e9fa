"""Probes that tell two classes or more apart: what ranks neurons for them, what they say, how well.

Every accuracy is balanced: the mean over the classes of the share that is right.
"""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.stats.effect_tests import cluster_error
from lens_skills.stats.intervals import share_interval

CANDIDATES = 4_000
"""So many neurons, those of the largest spread between the classes, enter the elastic net."""

PENALTY = 0.02
"""Of the elastic net, for each example's mean loss in nats."""

L1_RATIO = 0.5

Columns = Float[Tensor, "neuron example"]
Codes = Int[Tensor, " example"]


Others = Float[Tensor, "neuron other"]


def standardised(learn: Columns, values: Others) -> Others:
    """Values in standard deviations of ``learn``; a neuron that is constant there is 0."""
    mean, spread = learn.mean(1, keepdim=True), learn.std(1, correction=0, keepdim=True)
    flat = spread <= 1e-6 * learn.abs().amax(1, keepdim=True)
    return torch.where(flat, 0.0, (values - mean) / spread.clamp(min=1e-30))


def probeless(values: Columns, codes: Codes) -> Float[Tensor, " neuron"]:
    """Σ over pairs of classes of |x̄_z - x̄_z'|, in units of the activation."""
    means = torch.stack([values[:, codes == one].double().mean(1) for one in codes.unique()])
    return (means[:, None] - means[None]).abs().sum((0, 1)) / 2


def elastic_net(values: Columns, codes: Codes) -> Float[Tensor, " neuron"]:
    """Σ over the classes of |w|, and below all of these the spread between the classes.

    argmin over w, b of the weighted mean log-loss of softmax(w x + b), classes weighing the same,
    + `PENALTY` Σ (`L1_RATIO` |w| + (1 - `L1_RATIO`) w² / 2), by accelerated proximal gradient
    (Beck & Teboulle 2009), of the `CANDIDATES` neurons of the largest spread.

    Args:
        values: Standardised.
        codes: Classes from 0 on.
    """
    member = torch.nn.functional.one_hot(codes).float()
    means = values @ (member / member.sum(0))
    spread = means.square() @ member.mean(0)
    few = spread.argsort(descending=True, stable=True)[:CANDIDATES]
    strength = spread.double() / (1 + float(spread.max())) * 1e-9
    strength[few] += elastic_net_weights(values[few], codes).abs().sum(1).double()
    return strength


def elastic_net_weights(
    values: Columns, codes: Codes, *, most: int = 500, tolerance: float = 1e-4
) -> Float[Tensor, "neuron category"]:
    """The coefficients, after at most so many steps or where none moves by the tolerance."""
    x, member = values.T, torch.nn.functional.one_hot(codes).to(values.dtype)
    n, n_classes = member.shape
    weight = (n / n_classes / member.sum(0))[codes]
    vector = torch.ones(n, dtype=x.dtype)
    gram = x @ values + 1  # and the intercept's column of ones
    for _ in range(30):
        vector = gram @ vector
        vector = vector / vector.norm()
    bound = float(vector @ gram @ vector) * 1.05 * float(weight.max()) / (2 * n)
    step = 1 / (bound + PENALTY * (1 - L1_RATIO))
    w = last = torch.zeros(len(values), n_classes, dtype=x.dtype)
    b = last_b = torch.zeros(n_classes, dtype=x.dtype)
    momentum = 1.0
    for _ in range(most):
        after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        pull = (momentum - 1) / after
        at, at_b = w + pull * (w - last), b + pull * (b - last_b)
        residual = (torch.softmax(x @ at + at_b, 1) - member) * weight[:, None] / n
        slope = values @ residual + PENALTY * (1 - L1_RATIO) * at
        moved = torch.nn.functional.softshrink(at - step * slope, step * PENALTY * L1_RATIO)
        last, w, last_b, b = w, moved, b, at_b - step * residual.sum(0)
        momentum = after
        if float((w - last).abs().max()) < tolerance * max(float(w.abs().max()), 1e-6):
            break
    return w


def predict(learn: Columns, codes: Codes, held: Others) -> Int[Tensor, " other"]:
    """The class that a logistic probe with an L2 penalty says of each held-out example.

    Of more neurons than examples the probe reads their projections on the examples' own span,
    which makes the same probe: what lies outside of it has weight 0.
    """
    from sklearn.linear_model import LogisticRegression

    if len(learn) > learn.shape[1]:
        gram = (learn.T @ torch.cat([learn, held], dim=1)).double()
        values, vectors = torch.linalg.eigh(gram[:, : learn.shape[1]])
        real = values > 1e-6 * values.max()
        turn = vectors[:, real] / values[real].sqrt()
        learn, held = turn.T @ gram[:, : learn.shape[1]], turn.T @ gram[:, learn.shape[1] :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left to converge changes no answer
        probe = LogisticRegression(class_weight="balanced", max_iter=1000).fit(
            learn.T.double().numpy(), codes.numpy()
        )
    return torch.from_numpy(probe.predict(held.T.double().numpy())).long()


def balanced(right: Bool[Tensor, " example"], codes: Codes) -> float:
    """The mean over the classes of the share that is right."""
    shares = [right[codes == one].double().mean() for one in codes.unique()]
    return float(torch.stack(shares).mean())


def balanced_mean(
    values: Float[Tensor, " example"], codes: Codes, groups: Sequence[str]
) -> tuple[float, float]:
    """The mean over the classes of their means, and its cluster-robust standard error."""
    present, place = codes.unique(return_inverse=True)
    size = torch.bincount(place).double()
    means = torch.zeros(len(present), dtype=torch.float64).index_add_(0, place, values) / size
    influence = (values - means[place]) * len(values) / (len(present) * size[place])
    return float(means.mean()), float(cluster_error(influence[None], groups)[0])


def reach(groups: Sequence[str]) -> float:
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import t as student

    return float(student.ppf(0.975, max(len(set(groups)) - 1, 1)))


def accuracy_interval(
    right: Bool[Tensor, " example"], codes: Codes, groups: Sequence[str]
) -> tuple[float, float, float]:
    """Balanced accuracy with its 95 % interval over groups, within [0, 1].

    value ± t · cluster-robust standard error, Student's t of groups - 1 degrees of freedom; where
    all or none are right, the exact interval of the share right.
    """
    value, error = balanced_mean(right.double(), codes, groups)
    half = reach(groups) * error
    if half == 0:
        exact = share_interval(right.double()[None], groups)
        return value, min(value, float(exact[0][0])), max(value, float(exact[1][0]))
    return value, max(0.0, value - half), min(1.0, value + half)
