"""`token_logits`: which tokens a neuron makes more and less likely by itself (logit lens)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE
from lens_skills.activations.components import Component, parse_components
from lens_skills.activations.forward import encode_examples, pad_left
from lens_skills.cards import card_lines
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter, as_adapter
from lens_skills.models.partial_forward import CannotResume, PartialForward, prefill
from lens_skills.models.weights import OutputWeights, frozen_norm
from lens_skills.results import Result
from lens_skills.tasks.word_lists import neutral_texts

_TEXTS = 16  # so many texts say how large the residual stream is


@dataclass(frozen=True)
class TokenLogits(Result):
    """What one unit of a neuron's activation adds to the logits, nothing in between.

    Attributes:
        name: The neuron.
        promoted, suppressed: (token, change of its logit), strongest first.
        spread: Standard deviation of the change over the vocabulary.
        how: What stands between the neuron and the logits, in words.
    """

    name: str
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    spread: float
    how: str

    def frame(self) -> pd.DataFrame:
        """One row per token: token logit direction (promoted, suppressed)."""
        rows = [(token, logit, "promoted") for token, logit in self.promoted]
        rows += [(token, logit, "suppressed") for token, logit in self.suppressed]
        return pd.DataFrame(rows, columns=["token", "logit", "direction"])

    def __repr__(self) -> str:
        parts = {"promotes": self.promoted, "suppresses": self.suppressed}
        lines = card_lines(f"{self.name}, logits per unit of activation ({self.how})")
        for verb, tokens in parts.items():
            lines += card_lines(f"{verb:<10} {shown(tokens, len(tokens))}", indent=2, hang=11)
        return "\n".join(lines)


def shown(tokens: Sequence[tuple[str, float]], k: int) -> str:
    """The first tokens in one line: ``'5' +0.31, '55' +0.22``.

    >>> shown([("5", 0.3), ("6", 0.2)], 1)
    "'5' +0.3"
    """
    return ", ".join(f"{token!r} {logit:+.2g}" for token, logit in tokens[:k])


def token_logits(
    model: Any, neuron: Any, *, k: int = 10, over: Sequence[Example] | None = None
) -> TokenLogits:
    """The tokens a neuron promotes and suppresses most, straight through the final norm.

    Row W_out of the neuron, times the final norm's gain and divided by its scale (the mean, over
    some texts, of what the norm divides by: frozen, as the neuron hardly changes it), less its
    mean where the norm removes it, times W_U; then less the mean over the vocabulary, which no
    probability sees. In logits per unit of activation. Where a norm follows the MLP, not the row
    itself but what one more unit changes behind that norm, the mean over those texts.

    Args:
        model: A HookedTransformer or TransformerBridge.
        neuron: ``"L17N635"`` or (layer, index), at ``mlp.hook_post``.
        k: How many tokens of each kind.
        over: Examples that say how large the residual stream is where the answer is predicted;
            by default a few plain sentences.

    Raises:
        LensSkillsError: No such neuron; a final norm or an MLP output that is of no known kind.

    Does not show: what later layers make of what the neuron writes.

    Source: "logit lens" of a weight, Geva et al. 2022 (arXiv 2203.14680).
    """
    adapter = as_adapter(model)
    units = parse_components(adapter, neuron if isinstance(neuron, str) else [neuron])
    return logits_of(adapter, units, k=k, over=over)[0]


def logits_of(
    adapter: ModelAdapter,
    units: Sequence[Component],
    *,
    k: int = 10,
    over: Sequence[Example] | None = None,
) -> list[TokenLogits]:
    """`token_logits` of several neurons."""
    for unit in units:
        if unit.site != DEFAULT_SITE or unit.stop - unit.start > 1:
            raise LensSkillsError(
                f"{unit.name} at {unit.site} is no single neuron at {DEFAULT_SITE!r}, the only "
                "units whose output is one direction."
            )
    suffix = _some_pass(adapter, over)
    gain, centred = _frozen(adapter, suffix)
    writes = OutputWeights(adapter)
    rows = []
    for unit in units:
        weight = writes.rows(suffix, (unit.layer, unit.site), [unit.start])
        if weight is None:
            adapter.weight_out(unit.layer)  # packed weights say so themselves
            raise LensSkillsError(
                f"what {unit.name} writes is not known: its layer has no single output matrix."
            )
        rows.append(weight[0].double())
    effects = vocabulary_effects(adapter, torch.stack(rows), gain, centred)
    how = f"final {'LayerNorm' if centred else 'RMSNorm'} at a frozen scale, its gain included"
    found = []
    for unit, logits in zip(units, effects, strict=True):
        most = logits.topk(min(k, len(logits)))
        least = (-logits).topk(min(k, len(logits)))
        found.append(
            TokenLogits(
                unit.name,
                tuple((adapter.decode(int(i)), float(logits[i])) for i in most.indices),
                tuple((adapter.decode(int(i)), float(logits[i])) for i in least.indices),
                float(logits.std(correction=0)),
                how,
            )
        )
    return found


def vocabulary_effects(
    adapter: ModelAdapter,
    written: Float[Tensor, "neuron d_model"],
    gain: Float[Tensor, " d_model"],
    centred: bool,
) -> Float[Tensor, "neuron d_vocab"]:
    """Logits per unit of activation, less their mean over the vocabulary."""
    if centred:
        written = written - written.mean(-1, keepdim=True)
    unembed, _ = adapter.unembed_vectors()
    logits = (written * gain).to(torch.float32) @ unembed.to(torch.float32)
    return (logits - logits.mean(-1, keepdim=True)).double().cpu()


def _frozen(
    adapter: ModelAdapter, suffix: PartialForward
) -> tuple[Float[Tensor, " d_model"], bool]:
    found = frozen_norm(suffix.normalise, suffix.entering[-1][:, -1])
    if found is None:
        raise LensSkillsError(
            f"the final norm of {adapter.name} is neither a LayerNorm nor an RMSNorm, so what a "
            "neuron writes cannot be read through it."
        )
    return found[0].mean(0), found[1]


def _some_pass(adapter: ModelAdapter, over: Sequence[Example] | None) -> PartialForward:
    texts = [Example(id=str(n), prompt=text) for n, text in enumerate(neutral_texts()[:_TEXTS])]
    if over is None:
        adapter = adapter.in_chat(False)
    some = texts if over is None else over[:: max(1, len(over) // _TEXTS)]
    encoded = encode_examples(adapter, some, answers=False)
    rows = [item.prompt_tokens.tolist() for item in encoded]
    tokens, mask = pad_left(rows, adapter.pad_id, adapter.device)
    try:
        return prefill(adapter, tokens, mask, start=tokens.shape[1] - 1, readers={}, check=False)
    except CannotResume as error:
        raise LensSkillsError(f"what neurons write cannot be read: {error}.") from error
