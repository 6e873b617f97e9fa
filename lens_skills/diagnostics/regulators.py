"""`confidence_regulators`: is a neuron that goes with confidence a skill neuron, or a regulator?

Entropy and frequency neurons move the model's confidence on any text. `Regulators` holds the
diagnostics of each neuron, from weights, correlations and ablations; `classify` is the rule that
turns them into a word, and the thresholds stand beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, ActivationTable, Metric, confidence, parse_metric
from lens_skills.activations.activation_reader import read_neurons, refuse_constant
from lens_skills.activations.components import neuron_names, parse_components
from lens_skills.data import Example, in_turns
from lens_skills.diagnostics.neutral_text import cut_texts, log_unigram, read_neutral_text
from lens_skills.diagnostics.norm_mediation import Mediation, Outcome, mediate
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import with_layer_controls
from lens_skills.models import Chat, ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.models.sublayers import neuron_rows
from lens_skills.models.weights import Unembedding, null_size
from lens_skills.results import Result
from lens_skills.stats.correlation import GroupedCorrelation, correlate, percentiles
from lens_skills.stats.effect_tests import (
    FEW_GROUPS,
    check_groups,
    cluster_interval,
    equivalent,
    ratio_interval,
)
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p
from lens_skills.tasks.word_lists import neutral_texts

REGULATOR = "generic confidence regulator"
SKILL = "skill neuron"
NEITHER = "neither shown"
WORDS = (SKILL, REGULATOR, NEITHER)

FAR = 0.95
"""An outlier of its own layer: beyond 95 % of its neurons. The published entropy neurons are
told by standing apart from their layer's cloud (in norm and in variance), not by a fixed value,
which differs between models."""

MOSTLY = 0.5
"""More than half: of the effect through the norm's scale (the lower end of its interval), or of
the squared logit write along the frequency direction."""

ALPHA = 0.05
"""An ablation matters where so few random neurons of the layer move as much: of the task's metric
the share adjusted over all neurons diagnosed (Benjamini–Hochberg), since one hit in twenty would
else be a skill neuron by chance."""

STAND_IN = "the frequency direction is from the model's own mean prediction on the neutral texts"

MOST_CONTROLS = 100
"""Random neurons per layer, unless asked otherwise: p can be as small as 1/101."""


@dataclass(frozen=True, eq=False)
class Regulators(Result):
    """The confidence diagnostics of some neurons, one row each.

    Attributes:
        neurons: (layer, index) rows.
        table: One row per neuron. ``norm``: ‖w_out‖. ``log_variance``: log10 of the variance over
            the vocabulary of cos(w_out, W). ``null_share``: rho, 0 to 1. ``frequency``: signed
            cosine of the logit write with the frequency direction. Each with its ``_percentile``
            among all neurons of the layer (of |frequency|), 0 to 1. ``r_task``, ``r_neutral`` with
            ``_low``, ``_high``: correlation with the metric at the last prompt token, and at every
            token of neutral text. ``effect``: mean change of the metric under mean ablation, with
            ``_low`` and ``_high``; ``effect_size``: its mean size; ``p_task``: rank of that size
            among random neurons of the layer, ``q_task`` adjusted over the neurons diagnosed.
            ``entropy_size``, ``p_neutral``: the same of the entropy on neutral text;
            ``entropy_high``: upper end of the 90 % interval of that size over the texts, and
            ``entropy_bound``: the 95th percentile of the random neurons' own. An upper end within
            the bound shows, at 5 %, that neutral text is moved no more than random neurons move it.
            ``mediated`` with ``_low``, ``_high``: share of the direct effect on the entropy of
            neutral text that goes through the final norm's scale;
            ``mediated_task``, ``mediated_loss``: of the metric and of the loss, on the task.
            ``unigram``: mean change of KL(prediction ‖ unigram) on neutral text under ablation.
            ``word``, ``why``: what it comes to.
        norms, log_variances: Of every neuron of the model; the cloud the hits stand in.
        layers: The layer of each of those.
        k: How many singular directions count as the null space.
        metric, neutral_metric: What r is with.
        folded: What was multiplied into W_U, in words.
        unigram_from: Where the frequency direction comes from, in words.
        n_examples, n_groups, n_effects, n_texts, n_controls: What was measured on.
        provenance: Model, task, site.
    """

    neurons: Int[Tensor, "neuron 2"]
    table: pd.DataFrame
    norms: Float[Tensor, " all"]
    log_variances: Float[Tensor, " all"]
    layers: Int[Tensor, " all"]
    k: int
    metric: str
    neutral_metric: str
    folded: str
    unigram_from: str
    n_examples: int
    n_groups: int
    n_effects: int
    n_texts: int
    n_controls: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``."""
        return neuron_names(self.neurons)

    def frame(self) -> pd.DataFrame:
        """One row per neuron, every number and the word; see the attributes."""
        return self.table.copy()

    def __getitem__(self, name: str) -> pd.Series:
        """The row of one neuron.

        Raises:
            LensSkillsError: It was not diagnosed.
        """
        if name not in self.names:
            raise LensSkillsError(f"no {name!r} here. Diagnosed: {', '.join(self.names)}.")
        return self.table.iloc[self.names.index(name)]

    def of(self, word: str) -> list[str]:
        """The names of the neurons that got a word.

        Raises:
            LensSkillsError: No such word.
        """
        if word not in WORDS:
            raise LensSkillsError(f"no word {word!r}. There are: {', '.join(map(repr, WORDS))}.")
        return self.table.loc[self.table["word"] == word, "name"].tolist()

    def __repr__(self) -> str:
        counts = self.table["word"].value_counts()
        said = ", ".join(f"{counts[word]} {word}" for word in WORDS if word in counts)
        lines = [
            f"{len(self)} neurons · {self.metric} · {self.provenance.get('model', '')}: {said}",
            f"r over {self.n_examples:,} examples in {self.n_groups:,} groups and "
            f"{self.n_texts} neutral texts ({self.neutral_metric}); ablations on "
            f"{self.n_effects} examples, against {self.n_controls} random neurons per layer",
            f"null space: k = {self.k}; {self.folded}; {self.unigram_from}",
        ]
        for row in self.table.head(20).to_dict("records"):
            lines.append(
                f"  {row['name']:<9} {row['word']}: {row['why']}\n"
                f"    ‖w_out‖ {row['norm']:.3g} ({_part(row, 'norm')})  log var "
                f"{row['log_variance']:.2f} ({_part(row, 'log_variance')})  null space "
                f"{row['null_share']:.2f} ({_part(row, 'null_share')})  frequency "
                f"{row['frequency']:+.2f} ({_part(row, 'frequency')})\n"
                f"    r {row['r_task']:+.2f} [{row['r_task_low']:+.2f}, {row['r_task_high']:+.2f}] "
                f"task, {row['r_neutral']:+.2f} [{row['r_neutral_low']:+.2f}, "
                f"{row['r_neutral_high']:+.2f}] neutral  |effect| q = {row['q_task']:.2g} task, "
                f"p = {row['p_neutral']:.2g} neutral  through the norm "
                f"{row['mediated']:.2f} [{row['mediated_low']:.2f}, {row['mediated_high']:.2f}]"
            )
        if len(self) > 20:
            lines.append(f"  … and {len(self) - 20} more in .frame()")
        if min(self.n_groups, self.n_texts) < FEW_GROUPS:
            lines.append(f"  fewer than {FEW_GROUPS} groups or texts: the intervals are too narrow")
        lines.append("  percentiles are within the layer; thresholds: diagnostics/regulators.py")
        return "\n".join(lines)


def confidence_regulators(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    metric: Any = None,
    neutral: Sequence[str] | None = None,
    unigram: Float[Tensor, " d_vocab"] | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    n_effects: int = 64,
    n_controls: int | None = None,
    n_null: int | None = None,
    seed: int = 0,
) -> Regulators:
    """The confidence diagnostics of each neuron, and whether it is a generic regulator.

    From the weights, against all neurons of the layer: ‖w_out‖, the variance over the vocabulary
    of cos(w_out, W), the null-space share, the cosine of the logit write with the frequency
    direction (the centred log-unigram). From passes: correlation with the metric on the task and at
    every token of neutral text; the effects of mean ablation at the last prompt token, and
    1 - mean |Δ frozen| / mean |Δ direct|, the share of the direct effect that goes through the
    final norm's scale. Rule and thresholds: `lens_skills.diagnostics.regulators`.

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was.
        examples: The task; best a split that selected nothing.
        neurons: Names, (layer, index) rows, or a `Selection`, at ``mlp.hook_post``.
        metric: What the neurons are strong for: a number read off one position's logits, such as
            ``confidence()`` (the default), ``confidence("entropy")`` or ``logit_diff()``. Where it
            needs an answer, minus the entropy stands for it on neutral text.
        neutral: Texts that have nothing to do with the task; None takes those of the project.
        unigram: A count for each token of the vocabulary, from the model's training corpus. None
            takes the model's own mean next-token distribution over the neutral texts, which is a
            stand-in.
        prompt: A soft prompt to read the task with; neutral text is read without it.
        chat: As in `score`; neutral text is read as plain text all the same.
        n_effects: Examples to ablate on, drawn by group; neutral texts are cut at two places each.
        n_controls: Random neurons of each layer that |effect| is ranked among; None: 100, or all
            others where the layer holds fewer.
        n_null: Singular directions that count as the null space; None: 0.01 d_model.
        seed: Of the draws.

    Raises:
        LensSkillsError: A neuron that does not vary, fewer than 8 groups, a metric
            of categories or that no model is needed for, a table instead of a model, a model
            without a norm before its vocabulary projection.

    Source: Stolfo et al. 2024 (arXiv 2406.16254); Gurnee et al. 2024 (arXiv 2401.12181).
    Does not show: what a skill neuron's skill is; see `explain`.
    """
    if isinstance(model, ActivationTable):
        raise LensSkillsError("the diagnostics need the model itself, not a table of activations.")
    adapter = with_soft_prompt(model, prompt, chat)
    bare = with_soft_prompt(model, None).in_chat(False)
    wanted = _continuous(confidence() if metric is None else metric, examples)
    check_groups([example.group for example in examples], "an interval over groups")
    chosen = _rows(adapter, neurons)
    n, k = len(chosen), n_null or null_size(adapter.d_model)
    if n_controls is None:
        most = int(chosen[:, 0].bincount().max())
        n_controls = min(MOST_CONTROLS, adapter.d_mlp - most)
    several = with_layer_controls(chosen, n_controls, width=adapter.d_mlp, seed=seed)
    task = read_neurons(
        adapter, examples, several, at=DEFAULT_SITE, position="last", metrics=[wanted]
    )
    refuse_constant(task, n)
    values = task.metrics[wanted.name]
    _refuse_two_values(wanted, values)
    texts = neutral_texts() if neutral is None else neutral
    on_neutral = read_neutral_text(bare, texts, several, wanted)
    log_shares = log_unigram(unigram, on_neutral, adapter.d_vocab)
    table, cloud = weight_columns(adapter, chosen, k, log_shares)
    add_r(table, "r_task", correlate(task.values[:n], values, task.groups))
    there = correlate(on_neutral.values[:n], on_neutral.metric, on_neutral.groups)
    add_r(table, "r_neutral", there)
    drawn, cuts = draw_by_group(examples, n_effects, seed), cut_texts(texts, seed=seed)
    answers = all(example.answer is not None for example in examples)
    outcomes: dict[str, Outcome] = {"metric": wanted}
    if answers:
        outcomes["loss"] = answer_loss
    effects = mediate(
        adapter, drawn, several, task.values.mean(1), outcomes, answers=answers, n_paths=n
    )
    outcomes = {"entropy": confidence("entropy"), "unigram": divergence_from(log_shares)}
    mean = on_neutral.values.mean(1)
    effects_on_neutral = mediate(bare, cuts, several, mean, outcomes, answers=False, n_paths=n)
    add_effects(table, chosen, several, effects, effects_on_neutral, seed)
    add_words(table)
    return Regulators(
        neurons=chosen,
        table=table,
        k=k,
        metric=wanted.name,
        neutral_metric=on_neutral.metric_name,
        unigram_from="the frequency direction is from the counts given"
        if unigram is not None
        else STAND_IN,
        n_examples=len(examples),
        n_groups=len(set(task.groups)),
        n_effects=len(drawn),
        n_texts=len(texts),
        n_controls=n_controls,
        provenance=task.about,
        **cloud,
    )


def draw_by_group(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """About ``count`` examples, as evenly from all groups as there are."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    return in_turns([examples[place] for place in order], lambda example: example.group)[:count]


def _continuous(metric: Any, examples: Sequence[Example]) -> Metric:
    found = parse_metric(metric, examples, asked="confidence_regulators(metric=…)")
    if found.known:
        raise LensSkillsError(
            f"the metric {found.name!r} is known before the model runs, so it is no confidence. "
            "Choose confidence(), confidence('entropy') or logit_diff()."
        )
    if "stop" in found.reads:
        raise LensSkillsError(
            f"{found.name!r} is read off several positions. Choose one that a single position "
            "tells: confidence(), confidence('entropy'), logit_diff()."
        )
    return found


def _refuse_two_values(metric: Metric, values: Float[Tensor, " example"]) -> None:
    if len(values.unique()) <= 2:
        raise LensSkillsError(
            f"{metric.name!r} takes {len(values.unique())} values here, and the diagnostics need a "
            "continuous metric. Choose confidence() or logit_diff()."
        )


def _rows(adapter: ModelAdapter, neurons: Any) -> Int[Tensor, "neuron 2"]:
    units = parse_components(adapter, neurons, at=DEFAULT_SITE)
    if not units:
        raise LensSkillsError("no neurons to diagnose: the selection is empty.")
    for unit in units:
        if unit.site != DEFAULT_SITE:
            raise LensSkillsError(
                f"{unit.name!r} is no neuron. Name neurons at {DEFAULT_SITE}, such as 'L17N635'."
            )
    return torch.tensor([[unit.layer, unit.start] for unit in units])


def weight_columns(
    adapter: ModelAdapter,
    neurons: Int[Tensor, "neuron 2"],
    k: int,
    log_shares: Float[Tensor, " d_vocab"],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The weight columns of the chosen, and norm and variance of every neuron of the model."""
    unembedding = Unembedding.of(adapter)
    names = neuron_names(neurons)
    table = pd.DataFrame({"name": names, "layer": neurons[:, 0], "neuron": neurons[:, 1]})
    norms, variances, layers = [], [], []
    tiny = torch.finfo(torch.float64).tiny  # a variance of 0 is taken for the smallest number
    for layer in adapter.layers_with(DEFAULT_SITE):
        rows = neuron_rows(adapter, layer)
        values = {
            "norm": unembedding.norm(rows),
            "log_variance": unembedding.logit_variance(rows).clamp(min=tiny).log10(),
        }
        norms.append(values["norm"].cpu())
        variances.append(values["log_variance"].cpu())
        layers.append(torch.full((len(rows),), layer))
        here = (neurons[:, 0] == layer).nonzero()[:, 0]
        if len(here) == 0:
            continue
        values["null_share"] = unembedding.null_share(rows, k)
        values["frequency"] = unembedding.along(rows, log_shares)
        for name, numbers in values.items():
            size = numbers.abs().cpu() if name == "frequency" else numbers.cpu()
            chosen = neurons[here, 1]
            table.loc[here.tolist(), name] = numbers.cpu()[chosen].numpy()
            place = percentiles(size[chosen], size)
            table.loc[here.tolist(), f"{name}_percentile"] = place.numpy()
    cloud = {
        "norms": torch.cat(norms),
        "log_variances": torch.cat(variances),
        "layers": torch.cat(layers),
        "folded": unembedding.said,
    }
    return table, cloud


def add_r(table: pd.DataFrame, name: str, found: GroupedCorrelation) -> None:
    """Adds r and its interval, of the first neurons of the correlation."""
    n = len(table)
    table[name] = found.r[:n].numpy()
    table[f"{name}_low"], table[f"{name}_high"] = found.low[:n].numpy(), found.high[:n].numpy()


def add_effects(
    table: pd.DataFrame,
    neurons: Int[Tensor, "neuron 2"],
    several: Int[Tensor, "several 2"],
    task: Mediation,
    neutral: Mediation,
    seed: int,
) -> None:
    """Adds what ablation does on the task and on neutral text, ranked among random neurons.

    ``several`` are the neurons of the table, then random ones of each of their layers.
    """
    n = len(neurons)
    total = task.change["total"]["metric"]
    table["effect"] = total[:n].mean(1).numpy()
    low, high = cluster_interval(total[:n], task.groups, seed=seed)
    table["effect_low"], table["effect_high"] = low.numpy(), high.numpy()
    for found, outcome, size, p in (
        (task, "metric", "effect_size", "p_task"),
        (neutral, "entropy", "entropy_size", "p_neutral"),
    ):
        sizes = found.change["total"][outcome].abs().mean(1)
        table[size] = sizes[:n].numpy()
        for place, layer in enumerate(neurons[:, 0].tolist()):
            null = sizes[n:][several[n:, 0] == layer]
            table.loc[place, p] = float(rank_p(sizes[place], null))
            if outcome == "entropy":
                table.loc[place, "entropy_bound"] = float(null.quantile(FAR))
    moved = neutral.change["total"]["entropy"][:n].abs()
    high = cluster_interval(moved, neutral.groups, level=0.9, seed=seed)[1]
    table["entropy_high"] = high.numpy()
    table["q_task"] = false_discovery_q(torch.tensor(table["p_task"].tolist())).numpy()
    for name, found, outcome in (
        ("mediated", neutral, "entropy"),
        ("mediated_task", task, "metric"),
        ("mediated_loss", task, "loss"),
    ):
        part, low, high = mediated_fraction(found, outcome, n, seed)
        table[name] = part.numpy()
        table[f"{name}_low"], table[f"{name}_high"] = low.numpy(), high.numpy()
    table["unigram"] = neutral.change["total"]["unigram"][:n].mean(1).numpy()


def mediated_fraction(
    found: Mediation, outcome: str, n: int, seed: int
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """1 - mean |Δ frozen| / mean |Δ direct| of the first n neurons, and its interval over groups.

    At most 1, which means that all of the direct effect goes through the final norm's scale;
    0 none of it; below 0 the scale works against it. NaN where there is no direct effect.
    """
    if outcome not in found.change["frozen"]:
        nothing = torch.full((n,), math.nan, dtype=torch.float64)
        return nothing, nothing, nothing
    frozen = found.change["frozen"][outcome][:n].abs()
    direct = found.change["direct"][outcome][:n].abs()
    low, high = ratio_interval(frozen, direct, found.groups, seed=seed)
    return 1 - frozen.mean(1) / direct.mean(1), 1 - high, 1 - low


def answer_loss(logits: Float[Tensor, "row d_vocab"], rows: Sequence[Any]) -> Float[Tensor, " row"]:
    """-ln p of each example's first answer token, in nats."""
    first = torch.tensor([item.answer_tokens[0] for item in rows], device=logits.device)
    return -logits.double().log_softmax(-1).gather(1, first[:, None])[:, 0]


def divergence_from(log_shares: Float[Tensor, " d_vocab"]) -> Outcome:
    """The function KL(prediction ‖ unigram) = Σ p (ln p - ln u), in nats."""

    def compute(logits: Tensor, rows: Sequence[Any]) -> Tensor:
        log_p = logits.double().log_softmax(-1)
        return (log_p.exp() * (log_p - log_shares.to(log_p))).sum(-1)

    return compute


@dataclass(frozen=True)
class RegulatorMeasures:
    """The numbers that decide; see `Regulators` for what they are.

    Attributes:
        norm, variance, null, frequency: Percentiles within the layer, 0 to 1.
        frequency_share: Squared cosine with the frequency direction.
        mediated_low: Lower end of the LN-mediated fraction, on neutral text.
        q_task: Rank of |effect| on the task among random neurons of the layer, adjusted.
        signed: Whether the interval of the mean effect on the task leaves out 0.
        p_neutral: Rank of |effect| on neutral text, not adjusted.
        spared: Whether the 90 % interval of |effect| on neutral text lies within the 95th
            percentile of random neurons of the layer (equivalence, at 5 %).
    """

    norm: float
    variance: float
    null: float
    frequency: float
    frequency_share: float
    mediated_low: float
    q_task: float
    signed: bool
    p_neutral: float
    spared: bool


def classify(measures: RegulatorMeasures) -> tuple[str, str]:
    """The word for a neuron, and why.

    *generic confidence regulator*: its ablation moves the model's entropy on neutral text more
    than that of random neurons, and it does so as an entropy neuron (large ‖w_out‖, even logits,
    in the null space, through the norm's scale) or as a frequency neuron. *skill neuron*: its
    ablation moves the metric on the task one way, more than random neurons' do, and is *shown* to
    move neutral text no more than they do: that no difference was found is not enough. *neither
    shown*: anything else; the reason says what is missing.

    Source of the equivalence: Schuirmann 1987; |effect| has no lower side to test.

    >>> middling = [0.5, 0.5, 0.5, 0.5, 0.0, 0.0]
    >>> classify(RegulatorMeasures(*middling, q_task=0.01, signed=True, p_neutral=0.6,
    ...                            spared=True))[0]
    'skill neuron'
    """
    apart = {
        "a large norm": measures.norm >= FAR,
        "even logits": measures.variance <= 1 - FAR,
        "the null space": measures.null >= FAR,
    }
    through = measures.mediated_low > MOSTLY
    entropy_like = all(apart.values()) and through
    frequency_like = measures.frequency >= FAR and measures.frequency_share > MOSTLY
    on_task, on_neutral = measures.q_task <= ALPHA, measures.p_neutral <= ALPHA
    kinds = [
        words
        for words, holds in (
            ("writes to the null space and acts through the final norm", entropy_like),
            ("writes along the frequency direction", frequency_like),
        )
        if holds
    ]
    if kinds and on_neutral:
        return REGULATOR, f"{' and '.join(kinds)}, on neutral text too"
    if kinds:
        return NEITHER, f"{' and '.join(kinds)}, but hardly moves neutral text"
    if on_task and not measures.signed:
        return NEITHER, "its ablation moves the task, but up and down: on average not surely"
    if on_task and measures.spared:
        return SKILL, "its ablation moves the task, and neutral text no more than random neurons do"
    if on_task and not on_neutral:
        return NEITHER, (
            "its ablation moves the task; that it spares neutral text is not shown (more texts "
            "may tell)"
        )
    if on_task:
        hints = [words for words, holds in apart.items() if holds]
        hints += ["the norm's scale"] * through
        seen = f" (of a regulator it has {', '.join(hints)})" if hints else ""
        return NEITHER, f"its ablation moves the task and neutral text alike{seen}"
    return NEITHER, "its ablation is not shown to move the task more than a random neuron's"


def add_words(table: pd.DataFrame) -> None:
    """Adds the word of each row, and why."""
    found = [
        classify(
            RegulatorMeasures(
                norm=row["norm_percentile"],
                variance=row["log_variance_percentile"],
                null=row["null_share_percentile"],
                frequency=row["frequency_percentile"],
                frequency_share=row["frequency"] ** 2,
                mediated_low=row["mediated_low"],
                q_task=row["q_task"],
                signed=row["effect_low"] > 0 or row["effect_high"] < 0,
                p_neutral=row["p_neutral"],
                spared=bool(equivalent(0.0, row["entropy_high"], row["entropy_bound"])),
            )
        )
        for row in table.to_dict("records")
    ]
    table["word"] = [word for word, _ in found]
    table["why"] = [why for _, why in found]


def _part(row: dict[str, Any], name: str) -> str:
    """A percentile, in words.

    >>> _part({"norm_percentile": 0.953}, "norm")
    'p95'
    """
    return f"p{100 * row[f'{name}_percentile']:.0f}"
