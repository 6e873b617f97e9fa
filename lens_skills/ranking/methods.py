"""Every way of ranking neurons, side by side: what each computes, what it reads, where it is from.

`METHODS` holds them by name. A method takes the running sums of a pass (`ClassSums`), the stored
activations of one layer (`LayerActivations`), gradients, or passes of its own (`SplitPasses`), and
gives one number per neuron.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.interventions.attribution import ActivationGradients
from lens_skills.ranking.detectors import cett, h_neurons, l1_probe
from lens_skills.ranking.path_methods import STEPS, integrated_gradients, relevance
from lens_skills.ranking.specific_methods import exact, specific, specific_exact
from lens_skills.ranking.target_statistics import ClassSums, Target, TargetKind
from lens_skills.stats.correlation import area_under_curve
from lens_skills.stats.information import binned_information
from lens_skills.stats.multiple_testing import group_codes

Reads = Literal["sums", "firing", "values", "gradient", "passes", "answers", "nothing"]

ANY: frozenset[TargetKind] = frozenset({"binary", "categorical", "continuous"})
NUMBERS: frozenset[TargetKind] = frozenset({"binary", "continuous"})
TWO: frozenset[TargetKind] = frozenset({"binary"})
CLASSES: frozenset[TargetKind] = frozenset({"binary", "categorical"})

N_BINS = 10
"""Equal-width bins of ``"information"``."""

PENALTY = 0.02
"""Of Σ |w| in ``"l1"``, for each example's mean loss in nats: at 0.5 a coin's probe is empty."""

LARGE = 0.95
"""Of all firing rates: ``"lape"`` ranks a neuron where one of its rates is above this share."""


@dataclass(frozen=True)
class Method:
    """One way of ranking neurons.

    Attributes:
        name: How it is asked for.
        of: From what it reads (`ClassSums`, `LayerActivations`, `ActivationGradients`,
            `SplitPasses`, `AnswerContributions`; or the number of units and a seed) to one number
            per unit.
        takes: The kinds of metric it can rank by.
        reads: ``"sums"``: the running sums of one pass. ``"firing"``: the same pass, with the sign
            of the gate. ``"values"``: the same pass, with a layer's activations kept; 46,080
            neurons on 400 examples take 74 MB. ``"gradient"``: a pass with gradients, which all of
            these share. ``"passes"``: passes of its own. ``"answers"``: the model answers each
            example by itself, and is read meanwhile. ``"nothing"``: no pass.
        unit: What the number is measured in.
        about: What the number is, in one line.
        source: Where the method is from.
        signed: Whether its sign says which way the neuron goes.
        centre: The number of a neuron that tells nothing; strength is the distance from it.
        lowest: Whether the lowest number is the strongest.
        of_metric: Of ``"passes"``: whether it is about a metric of the model (as all of
            ``"gradient"`` are), so that a column of the task will not do.
        per_layer: Whether it takes passes of its own for every layer.
    """

    name: str
    of: Callable[..., Float[Tensor, " unit"]]
    takes: frozenset[TargetKind]
    reads: Reads
    unit: str
    about: str
    source: str
    signed: bool = False
    centre: float = 0.0
    lowest: bool = False
    of_metric: bool = True
    per_layer: bool = False

    @property
    def takes_long(self) -> bool:
        """Whether `compare_methods` tries it only where it is named."""
        return self.per_layer or self.reads == "answers"

    @property
    def reads_model(self) -> bool:
        """Whether it runs the model itself, beyond the pass over the activations."""
        return self.reads in ("gradient", "passes", "answers")

    @property
    def differentiates(self) -> bool:
        """Whether it is about a metric of the model, not about any column."""
        return self.reads == "gradient" or (self.reads == "passes" and self.of_metric)

    def strength(self, score: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
        """Larger is stronger, whatever the method's own number; NaN (not ranked) becomes -inf."""
        distance = -score if self.lowest else (score - self.centre).abs()
        return distance.nan_to_num(nan=-float("inf"), posinf=float("inf"), neginf=-float("inf"))


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """One layer's activations on every example.

    Attributes:
        activations: As the model gave them.
        target: What is ranked by.
        groups: Each example's group: halves that are held against each other share none.
        constant: Units that do not vary.
        seed: Of random halves and of a solver's order.
    """

    activations: Float[Tensor, "row unit"]
    target: Target
    groups: Sequence[str]
    constant: Bool[Tensor, " unit"]
    seed: int


# From sums.


def pearson(sums: ClassSums) -> Float[Tensor, " unit"]:
    """r = Σ (x - x̄)(y - ȳ) / sqrt(Σ (x - x̄)² Σ (y - ȳ)²), in [-1, 1]; what `score` reports."""
    return (sums.cross / (sums.square * sums.target_square).sqrt()).clamp(-1, 1)


def mean_difference(sums: ClassSums) -> Float[Tensor, " unit"]:
    """Cohen's d = (x̄_1 - x̄_0) / s, with s² = Σ_c Σ (x - x̄_c)² / (n - 2)."""
    low, high = sums.class_mean
    return (high - low) / (sums.within / (sums.n_rows - 2)).sqrt()


def f_statistic(sums: ClassSums) -> Float[Tensor, " unit"]:
    """F = (Σ_c n_c (x̄_c - x̄)² / (K - 1)) / (Σ_c Σ (x - x̄_c)² / (n - K)), 0 and above."""
    n_classes = len(sums.size)
    between = sums.between / (n_classes - 1)
    return between / (sums.within / (sums.n_rows - n_classes))


def probeless(sums: ClassSums) -> Float[Tensor, " unit"]:
    """Σ over pairs of classes of |x̄_z - x̄_z'|, in units of the activation (not standardised)."""
    means = sums.class_mean
    pairs = [(means[a] - means[b]).abs() for a, b in combinations(range(len(means)), 2)]
    return torch.stack(pairs).sum(0)


def lape(sums: ClassSums) -> Float[Tensor, " unit"]:
    """Entropy of the firing rates over the classes, in nats (0 to ln K); the lowest is strongest.

    p_c = how often the gate is open in class c; entropy of p_c / Σ p_c. A neuron is ranked only
    where some p_c is among the largest 5 % of all rates (of all neurons and classes): one that
    fires once in all has entropy 0. Others are NaN.

    The sign is that of the *gate*: act(gate) has it, act(gate) · up does not. Where a tie at the
    95th percentile would leave no neuron (with few examples it may be 1), rates at it count.
    """
    assert sums.fired is not None, "the gate was not read"
    rate = sums.fired / sums.size[:, None]
    total = rate.sum(0)
    share = rate / total.clamp(min=1e-300)
    entropy = -torch.special.xlogy(share, share).sum(0)
    # torch.quantile refuses more than 16 million numbers; the k-th value is what the paper takes.
    place = max(1, round(rate.numel() * LARGE))
    bar = rate.flatten().kthvalue(place).values
    active = (rate > bar).any(0)
    if not bool(active.any()):
        active = (rate >= bar).any(0) & (total > 0)
    return torch.where(active, entropy, torch.nan)


# From the stored activations of one layer.


def predictivity(values: LayerActivations) -> Float[Tensor, " unit"]:
    """max(accuracy, 1 - accuracy) of "x > b", in [0.5, 1]; 0.5 tells nothing.

    The threshold b of an example is the neuron's mean over the *other* half of the examples
    (random halves that share no group), so none helps to set the threshold it is held against. The
    accuracy is the mean of both classes': at 17 % correct a silent neuron would else reach 0.83.
    """
    rows = values.activations.double()
    first = _first_half(values.groups, seed=values.seed)
    threshold = torch.where(first[:, None], rows[~first].mean(0), rows[first].mean(0))
    fires = (rows > threshold).double()
    high = values.target.values == 1
    accuracy = (fires[high].mean(0) + 1 - fires[~high].mean(0)) / 2
    return torch.maximum(accuracy, 1 - accuracy)


def _first_half(groups: Sequence[str], *, seed: int) -> Bool[Tensor, " row"]:
    """Which examples are in the first half; groups stay whole."""
    codes = group_codes(groups)
    n_groups = int(codes.max()) + 1
    order = np.random.default_rng(seed).permutation(n_groups)
    first = torch.from_numpy(order[codes] < (n_groups + 1) // 2)
    if n_groups < 2:  # one group only: its examples are halved, since nothing else can be
        first = torch.arange(len(codes)) % 2 == 0
    return first


def information(values: LayerActivations) -> Float[Tensor, " unit"]:
    """I(bin of x; class) in bits, from counts in `N_BINS` equal-width bins of each neuron's range.

    Counts overstate it, by about (bins - 1)(classes - 1) / (2 n ln 2) bits: compare neurons, not
    splits of different size.
    """
    rows = values.activations.double().T.contiguous()
    return binned_information(rows, values.target.codes, n_bins=N_BINS)


def auroc(values: LayerActivations) -> Float[Tensor, " unit"]:
    """P(x of class 1 > x of class 0) + P(equal) / 2, in [0, 1]; 0.5 tells nothing."""
    return area_under_curve(values.activations, values.target.values)


def l1_coefficients(values: LayerActivations) -> Float[Tensor, " unit"]:
    """Coefficients of the layer's probe on standardised activations; NaN where it chose none.

    argmin over w, b of mean log-loss + `PENALTY` Σ |w|, one probe for each layer: a neuron's
    coefficient says what it adds to the others of its layer.

    Does not show: that a neuron without a coefficient knows nothing; its twin may have it.
    """
    rows = values.activations.double().numpy()
    kept = ~values.constant.numpy()
    if not kept.any():
        return torch.full((rows.shape[1],), torch.nan, dtype=torch.float64)
    standard = (rows - rows.mean(0))[:, kept] / rows.std(0)[kept]
    probe = l1_probe(1 / (PENALTY * len(rows)), values.seed, tolerance=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left to converge is below the test's 1e-3
        probe.fit(standard, values.target.codes.numpy())
    found = np.full(rows.shape[1], np.nan)
    found[kept] = np.where(probe.coef_[0] == 0, np.nan, probe.coef_[0])
    return torch.from_numpy(found)


# From gradients, and from nothing.


def taylor(gradients: ActivationGradients) -> Float[Tensor, " unit"]:
    """Mean over the examples of |a · ∂m/∂a|, in the metric's unit.

    Does not show: an effect. Saturated neurons, and those that others replace, are misjudged.
    """
    return gradients.taylor


def gradient(gradients: ActivationGradients) -> Float[Tensor, " unit"]:
    """Mean over the examples of ∂m/∂a, signed, in the metric's unit per unit of activation.

    A neuron that hardly moves may have a large one: it says what the metric would do, not what
    the neuron does.
    """
    return gradients.slope


def prediction(gradients: ActivationGradients) -> Float[Tensor, " unit"]:
    """Mean over the examples of (ā - a) · ∂m/∂a, signed, in the metric's unit; ā is the mean of a.

    The effect of mean ablation to first order: edited minus clean, so that a neuron whose work
    raises the metric has a negative one. Unlike ``"taylor"`` it is about the very edit, and what a
    neuron does in one half of the examples and undoes in the other cancels.

    Does not show: an effect. Saturated neurons, and those that others replace, are misjudged.
    """
    return gradients.ablated


def random_order(n_units: int, seed: int) -> Float[Tensor, " unit"]:
    """A number in (0, 1] per unit, the same for the same seed: what any method must beat."""
    generator = torch.Generator().manual_seed(seed)
    return 1 - torch.rand(n_units, generator=generator, dtype=torch.float64)


_ALL = (
    Method("pearson", pearson, NUMBERS, "sums", "r",
           "correlation of the activation with the metric",
           "Pearson 1895; of neurons and the model's own confidence: arXiv 2511.21610",
           signed=True),
    Method("predictivity", predictivity, TWO, "values", "accuracy",
           "balanced accuracy of firing beyond the mean of other examples",
           "Wang et al. 2022, arXiv 2211.07349, section 3 (there unbalanced)", centre=0.5),
    Method("smd", mean_difference, TWO, "sums", "standard deviations",
           "difference of the class means over the pooled standard deviation",
           "Cohen 1988; of neurons: arXiv 2305.01610 (mean difference)", signed=True),
    Method("f", f_statistic, CLASSES, "sums", "F",
           "variance between the classes over the variance within them",
           "Fisher 1925 (analysis of variance); of neurons: arXiv 2305.01610"),
    Method("information", information, CLASSES, "values", "bits",
           f"mutual information of the activation in {N_BINS} bins with the class",
           "Shannon 1948; of neurons: arXiv 2305.01610"),
    Method("auroc", auroc, TWO, "values", "probability",
           "chance that the activation is larger in class 1 than in class 0",
           "Mann & Whitney 1947; Hanley & McNeil 1982", signed=True, centre=0.5),
    Method("l1", l1_coefficients, TWO, "values", "log-odds per standard deviation",
           "coefficient in its layer's sparse logistic probe; most neurons have none",
           "Tibshirani 1996 (L1); of neurons: arXiv 2305.01610 (scikit-learn's liblinear)",
           signed=True),
    Method("probeless", probeless, CLASSES, "sums", "activation",
           "sum over pairs of classes of the distance of the class means",
           "arXiv 2305.00875 (NeuroX)"),
    Method("lape", lape, CLASSES, "firing", "nats",
           "entropy over the classes of how often the gate is open; lowest first",
           "Tang et al. 2024, arXiv 2402.16438, and its released code (the 95 % bar)", lowest=True),
    Method("taylor", taylor, ANY, "gradient", "the metric's",
           "mean |activation times gradient of the model's metric|",
           "arXiv 2407.06488"),
    Method("gradient", gradient, ANY, "gradient", "the metric's per activation",
           "mean gradient of the model's metric by the activation",
           "arXiv 2412.18053 (estimated by one backward pass)", signed=True),
    Method("prediction", prediction, ANY, "gradient", "the metric's",
           "first-order effect of mean ablation on the model's metric, the mean over examples",
           "attribution patching (Nanda 2023; arXiv 2310.10348), from the mean instead of a "
           "corrupted prompt",
           signed=True),
    Method("cett", cett, TWO, "answers", "standard deviations",
           "difference of the classes in the neuron's share of what its MLP writes (CETT), on the "
           "tokens of the model's own answer",
           "CETT: Gao et al. 2025, arXiv 2512.01797 (H-Neurons); its standardised difference: ours",
           signed=True),
    Method("h_neurons", h_neurons, TWO, "answers", "log-odds per standard deviation",
           "coefficient in a sparse probe over all layers' CETT on own answers; most have none",
           "Gao et al. 2025, arXiv 2512.01797 (H-Neurons)", signed=True),
    Method("integrated_gradients", integrated_gradients, ANY, "passes", "the metric's",
           f"mean of (twin or mean - activation) times gradient at {STEPS} points between them",
           "Sundararajan et al. 2017, arXiv 1703.01365; towards the twin's activation, layer by "
           "layer: Marks et al. 2024, arXiv 2403.19647 (released code: left ends of 10 steps)",
           signed=True, per_layer=True),
    Method("relevance", relevance, ANY, "passes", "the metric's",
           "mean of (twin or mean - activation) times coefficient of relevance propagation",
           "Jafari et al. 2025, arXiv 2508.21258 (RelP: LN-, AH-, identity and half rule, released "
           "code; no stabiliser here); of neurons: arXiv 2601.22594", signed=True),
    Method("exact", exact, ANY, "passes", "the metric's",
           "effect of mean ablation, measured on a dozen examples where the prediction is large",
           "ours: prediction, and exact passes by a difference estimator (Cochran 1977)",
           signed=True),
    Method("specific", specific, ANY, "passes", "share of the clean metric",
           "predicted effect here minus the largest on other tasks and neutral text",
           "ours", signed=True),
    Method("specific_exact", specific_exact, ANY, "passes", "share of the clean metric",
           "specific, with the effects of the strongest measured on a dozen examples of each",
           "ours", signed=True),
    Method("random", random_order, ANY, "nothing", "",
           "a random number",
           "the base rate"),
)  # fmt: skip

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""Every method by its name, each with what it is, its source, and the metrics it takes."""


def find_methods(names: Iterable[str]) -> tuple[Method, ...]:
    """The methods of these names, in this order.

    Raises:
        LensSkillsError: A name that is no method, or one named twice.
    """
    wanted = list(names)
    for name in wanted:
        if name not in METHODS:
            raise LensSkillsError(f"no method {name!r}. Choose from: {', '.join(METHODS)}.")
        if wanted.count(name) > 1:
            raise LensSkillsError(f"the method {name!r} is named twice. Name each once.")
    return tuple(METHODS[name] for name in wanted)
