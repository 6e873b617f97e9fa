"""The columns of the table of `regulators`: from weights, correlations and ablations."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.diagnosis.correlation import GroupedCorrelation, percentiles
from lens_skills.diagnosis.flags import Evidence, flag
from lens_skills.diagnosis.kinds import log10
from lens_skills.diagnosis.mediation import Mediation, Outcome
from lens_skills.diagnosis.unembedding import Unembedding
from lens_skills.models import Lens
from lens_skills.stats.bootstrap import cluster_interval, ratio_interval
from lens_skills.stats.corrections import false_discovery_q, rank_p


def weight_columns(
    lens: Lens, neurons: Int[Tensor, "neuron 2"], k: int, log_shares: Float[Tensor, " d_vocab"]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The weight columns of the chosen, and norm and variance of every neuron of the model."""
    unembedding = Unembedding.of(lens)
    names = [f"L{layer}N{neuron}" for layer, neuron in neurons.tolist()]
    table = pd.DataFrame({"name": names, "layer": neurons[:, 0], "neuron": neurons[:, 1]})
    norms, variances, layers = [], [], []
    for layer in range(lens.n_layers):
        rows = lens.weight_out(layer)
        values = {
            "norm": unembedding.norm(rows),
            "log_variance": log10(unembedding.logit_variance(rows)),
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
    quiet: Mediation,
    seed: int,
) -> None:
    """Adds what ablation does on the task and on neutral text, ranked among random neurons.

    Args:
        table: One row per neuron, to be filled in.
        neurons: Those neurons.
        several: The same first, then random neurons of each of their layers.
        task, quiet: Of ``several``.
        seed: Of the intervals.
    """
    n = len(neurons)
    total = task.change["total"]["metric"]
    table["effect"] = total[:n].mean(1).numpy()
    low, high = cluster_interval(total[:n], task.groups, seed=seed)
    table["effect_low"], table["effect_high"] = low.numpy(), high.numpy()
    for found, outcome, size, p in (
        (task, "metric", "effect_size", "p_task"),
        (quiet, "entropy", "entropy_size", "p_neutral"),
    ):
        sizes = found.change["total"][outcome].abs().mean(1)
        table[size] = sizes[:n].numpy()
        for place, layer in enumerate(neurons[:, 0].tolist()):
            null = sizes[n:][several[n:, 0] == layer]
            table.loc[place, p] = float(rank_p(sizes[place], null))
    table["q_task"] = false_discovery_q(torch.tensor(table["p_task"].tolist())).numpy()
    for name, found, outcome in (
        ("mediated", quiet, "entropy"),
        ("mediated_task", task, "metric"),
        ("mediated_loss", task, "loss"),
    ):
        part, low, high = mediated_fraction(found, outcome, n, seed)
        table[name] = part.numpy()
        table[f"{name}_low"], table[f"{name}_high"] = low.numpy(), high.numpy()
    table["unigram"] = quiet.change["total"]["unigram"][:n].mean(1).numpy()


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


def add_words(table: pd.DataFrame) -> None:
    """Adds the flag of each row, and why."""
    found = [
        flag(
            Evidence(
                norm=row["norm_percentile"],
                variance=row["log_variance_percentile"],
                null=row["null_share_percentile"],
                frequency=row["frequency_percentile"],
                frequency_share=row["frequency"] ** 2,
                mediated_low=row["mediated_low"],
                q_task=row["q_task"],
                signed=row["effect_low"] > 0 or row["effect_high"] < 0,
                p_neutral=row["p_neutral"],
            )
        )
        for row in table.to_dict("records")
    ]
    table["word"] = [word for word, _ in found]
    table["why"] = [why for _, why in found]


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
