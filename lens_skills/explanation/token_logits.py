"""`token_logits`: which tokens a neuron makes more and less likely.

By itself (logit lens), or through the later layers (Jacobian lens).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE
from lens_skills.activations.components import Component, parse_components
from lens_skills.activations.continuations import pad_left
from lens_skills.activations.forward import encode_examples
from lens_skills.cards import card_lines
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.models import ModelAdapter, as_adapter
from lens_skills.models.partial_forward import CannotResume, PartialForward, prefill
from lens_skills.models.weights import OutputWeights, frozen_norm
from lens_skills.results import Result
from lens_skills.tasks.word_lists import neutral_texts

LENSES = {"logit": "logit lens", "jacobian": "Jacobian lens"}
"""How what a neuron writes is read, and the name of it."""

_TEXTS = 16  # so many texts say how large the residual stream is
_AT_ONCE = 32  # neurons whose difference quotients run side by side


@dataclass(frozen=True)
class TokenLogits(Result):
    """What one unit of a neuron's activation adds to the logits.

    Attributes:
        name: The neuron.
        promoted, suppressed: (token, change of its logit), strongest first.
        spread: Standard deviation of the change over the vocabulary.
        how: What stands between the neuron and the logits, in words.
        lens: ``"logit"`` (nothing but the final norm) or ``"jacobian"`` (the later layers too).
    """

    name: str
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    spread: float
    how: str
    lens: str = "logit"

    def frame(self) -> pd.DataFrame:
        """One row per token: token logit direction (promoted, suppressed)."""
        rows = [(token, logit, "promoted") for token, logit in self.promoted]
        rows += [(token, logit, "suppressed") for token, logit in self.suppressed]
        return pd.DataFrame(rows, columns=["token", "logit", "direction"])

    def __repr__(self) -> str:
        parts = {"promotes": self.promoted, "suppresses": self.suppressed}
        lines = card_lines(
            f"{self.name}, {LENSES.get(self.lens, self.lens)}: logits per unit of activation"
        )
        lines += card_lines(self.how, indent=2)
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
    model: Any,
    neuron: Any,
    *,
    k: int = 10,
    over: Sequence[Example] | None = None,
    lens: str = "logit",
) -> TokenLogits:
    """The tokens a neuron promotes and suppresses most, straight through the final norm.

    Row W_out of the neuron, times the final norm's gain and divided by its scale (the mean, over
    some texts, of what the norm divides by: frozen, as the neuron hardly changes it), less its
    mean where the norm removes it, times W_U; then less the mean over the vocabulary, which no
    probability sees. In logits per unit of activation. Where a norm follows the MLP, not the row
    itself but what one more unit changes behind that norm, the mean over those texts.

    ``lens="jacobian"`` first takes that row through the later layers, to first order: J W_out, J
    being the derivative of the final residual stream by that after the neuron's block, both at the
    token where the answer is predicted, and the mean over the same texts. In the last layer J is
    the identity, and both lenses are one.

    Args:
        model: A HookedTransformer or TransformerBridge.
        neuron: ``"L17N635"`` or (layer, index), at ``mlp.hook_post``; or a feature of a
            dictionary (``"L12F345"``), whose row of W_dec stands for W_out.
        k: How many tokens of each kind.
        over: Examples that say how large the residual stream is where the answer is predicted,
            and over which J is a mean (of about 16 of them); by default a few plain sentences.
        lens: ``"logit"`` or ``"jacobian"``.

    Raises:
        LensSkillsError: No such neuron; a final norm or an MLP output that is of no known kind; a
            model whose later layers cannot run by themselves (Jacobian lens).

    Does not show: by the logit lens, what later layers make of what the neuron writes; by the
    Jacobian lens, what they make of more than a small change, what a text does differently from
    the mean, and what attention carries to other tokens.

    Source: "logit lens" of a weight, Geva et al. 2022 (arXiv 2203.14680); Jacobian lens, Gurnee et
    al. 2026 (Transformer Circuits Thread), here without later targets and one source a prompt.
    """
    adapter = as_adapter(model)
    units = parse_components(adapter, neuron if isinstance(neuron, str) else [neuron])
    return logits_of(adapter, units, k=k, over=over, lenses=(lens,))[0][0]


def has_direction(adapter: ModelAdapter, site: str) -> bool:
    """Whether each unit of a site writes one direction: neurons, features of a dictionary."""
    return site == DEFAULT_SITE or bool(adapter.dictionaries_at(site))


def check_lenses(lenses: Sequence[str]) -> None:
    """Refuses a lens that is none of the two."""
    for lens in lenses:
        if lens not in LENSES:
            raise LensSkillsError(
                f"no lens {lens!r}.{did_you_mean(lens, tuple(LENSES))} There are: "
                f"{', '.join(LENSES)}."
            )


def logits_of(
    adapter: ModelAdapter,
    units: Sequence[Component],
    *,
    k: int = 10,
    over: Sequence[Example] | None = None,
    lenses: Sequence[str] = ("logit",),
) -> list[list[TokenLogits]]:
    """`token_logits` of several neurons, by each lens."""
    check_lenses(lenses)
    if k < 1:
        raise LensSkillsError(f"k= is how many tokens of each kind, 1 or more, not {k}.")
    for unit in units:
        if not has_direction(adapter, unit.site) or unit.stop - unit.start > 1:
            raise LensSkillsError(
                f"{unit.name} at {unit.site} is no single neuron at {DEFAULT_SITE!r}, nor a "
                "feature of a dictionary: the only units whose output is one direction."
            )
    suffix = _some_pass(adapter, over, check="jacobian" in lenses)
    gain, centred = _frozen(adapter, suffix)
    writes = OutputWeights(adapter)
    rows = []
    for unit in units:
        weight = writes.rows(suffix, (unit.layer, unit.site), [unit.start])
        if weight is None:
            if unit.site == DEFAULT_SITE:
                adapter.weight_out(unit.layer)  # packed weights say so themselves
            raise LensSkillsError(
                f"what {unit.name} writes is not known: its layer has no single output matrix, or "
                "its dictionary scales what it writes token by token."
            )
        rows.append(weight[0].double())
    norm = f"final {'LayerNorm' if centred else 'RMSNorm'} at a frozen scale, its gain included"
    found: list[list[TokenLogits]] = [[] for _ in units]
    for lens in lenses:
        written, how = torch.stack(rows), norm
        if lens == "jacobian":
            after = [_written_after(writes, unit) for unit in units]
            written = through_later_layers(suffix, written, after)
            how = (
                "through the later layers at the same token, to first order, the mean over "
                f"{len(suffix.mask)} texts; then the {norm}"
            )
        effects = vocabulary_effects(adapter, written, gain, centred)
        for number, (unit, logits) in enumerate(zip(units, effects, strict=True)):
            most = logits.topk(min(k, len(logits)))
            least = (-logits).topk(min(k, len(logits)))
            found[number].append(
                TokenLogits(
                    unit.name,
                    tuple((adapter.decode(int(i)), float(logits[i])) for i in most.indices),
                    tuple((adapter.decode(int(i)), float(logits[i])) for i in least.indices),
                    float(logits.std(correction=0)),
                    how,
                    lens,
                )
            )
    return found


def _written_after(writes: OutputWeights, unit: Component) -> int:
    """The block after which a unit stands in the residual stream, -1 before all."""
    enters = writes.enters((unit.layer, unit.site))
    if enters not in (DEFAULT_SITE, "hook_mlp_out", "hook_resid_post", "hook_resid_pre"):
        raise LensSkillsError(
            f"{unit.name} writes to {enters}, inside its block, and the Jacobian lens begins "
            "behind one. Use lens='logit'."
        )
    return unit.layer - (enters == "hook_resid_pre")


def through_later_layers(
    suffix: PartialForward, rows: Float[Tensor, "neuron d_model"], layers: Sequence[int]
) -> Float[Tensor, "neuron d_model"]:
    """What a small change after a block (-1: before all) becomes in the final residual stream.

    Per unit of the change, at the last token, the mean over the examples: a central difference,
    whose step is a small part of the residual stream's length.
    """
    adapter, found = suffix.adapter, rows.clone()
    share = 0.01 if adapter.dtype in (torch.float32, torch.float64) else 0.1
    for layer in sorted({*layers} - {adapter.n_layers - 1}):
        here = [number for number, own in enumerate(layers) if own == layer]
        clean = suffix.entering[layer + 1][:, -1].double()
        for start in range(0, len(here), _AT_ONCE):
            some = here[start : start + _AT_ONCE]
            length = rows[some].norm(dim=-1).clamp(min=1e-12).to(clean)
            step = share * clean.norm(dim=-1) / length[:, None]
            push = torch.einsum("se,sd->sed", step, rows[some].to(clean))
            residual = suffix.clean(layer + 1, 2 * len(some)).clone()
            moved = torch.cat([push, -push]).to(residual)
            residual[:, :, -1] = residual[:, :, -1] + moved
            out = suffix.run(residual, layer + 1)[:, :, -1].double()
            up, down = out.split(len(some))
            slope = (up - down) / (2 * step[..., None])
            found[some] = slope.mean(1).to(found)
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


def _some_pass(
    adapter: ModelAdapter, over: Sequence[Example] | None, *, check: bool
) -> PartialForward:
    texts = [Example(id=str(n), prompt=text) for n, text in enumerate(neutral_texts()[:_TEXTS])]
    if over is None:
        adapter = adapter.in_chat(False)
    some = texts if over is None else over[:: max(1, len(over) // _TEXTS)]
    encoded = encode_examples(adapter, some, answers=False)
    rows = [item.prompt_tokens.tolist() for item in encoded]
    tokens, mask = pad_left(rows, adapter.pad_id, adapter.device)
    try:
        return prefill(adapter, tokens, mask, start=tokens.shape[1] - 1, readers={}, check=check)
    except CannotResume as error:
        raise LensSkillsError(f"what neurons write cannot be read: {error}.") from error
