"""`TokenOdds`: the log-odds of single tokens, read without the rest of the vocabulary."""

from collections.abc import Sequence
from inspect import unwrap
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric, logit_diff
from lens_skills.activations.encoding import Encoded
from lens_skills.activations.plan import Plan


def is_log_odds(metric: Metric) -> bool:
    """Whether the metric is `logit_diff`, under whatever name."""
    # Unwrapped: whatever checks shapes around every function shares one code among them all.
    code, own = (getattr(unwrap(one.of), "__code__", None) for one in (metric, logit_diff()))
    return code is not None and code is own


class TokenOdds:
    """Answer against foil (or the best other option), each of one token, for a batch.

    The softmax's normaliser cancels, so two columns of the unembedding suffice; everything here
    is linear in the normalised residual stream, up to the choice among several other options.
    """

    def __init__(self, lens: Any, batch: Sequence[Encoded], plan: Plan) -> None:
        weight, bias = lens.unembed_vectors()
        rows, offsets = [], []
        for answer, others in (_tokens(item, plan) for item in batch):
            rows.append(weight[:, answer, None].double() - weight[:, others].double())
            zeros = torch.zeros(len(others), dtype=torch.float64, device=weight.device)
            offsets.append(zeros if bias is None else (bias[answer] - bias[others]).double())
        widest = max(len(row) for row in offsets)
        # Examples with fewer options repeat their last one: a minimum does not mind.
        pad = [list(range(len(o))) + [len(o) - 1] * (widest - len(o)) for o in offsets]
        self.directions = torch.stack([r[:, p].T for r, p in zip(rows, pad, strict=True)])
        self.offsets = torch.stack([o[p] for o, p in zip(offsets, pad, strict=True)])

    @classmethod
    def of(cls, lens: Any, batch: Sequence[Encoded], plan: Plan, metric: Metric) -> Any:
        """The log-odds of a batch, or None where the metric or its tokens are others."""
        if not is_log_odds(metric):
            return None
        single = all(
            len(item.answer_tokens or ()) == 1
            and all(len(tokens) == 1 for tokens in _others(item, plan))
            for item in batch
        )
        return cls(lens, batch, plan) if single else None

    def __call__(
        self, normal: Float[Tensor, "set example d_model"]
    ) -> Float[Tensor, "set example"]:
        """The log-odds of the normalised residual stream at the last prompt token, in nats."""
        odds = torch.einsum("sed,ekd->sek", normal.to(self.directions), self.directions)
        return (odds + self.offsets).amin(-1)


def _others(item: Encoded, plan: Plan) -> list[tuple[int, ...]]:
    if plan.foil:
        return [item.foil_tokens or ()]
    answer = item.example.answer
    pairs = zip(item.example.options, item.option_tokens, strict=True)
    return [tokens for option, tokens in pairs if option != answer]


def _tokens(item: Encoded, plan: Plan) -> tuple[int, list[int]]:
    assert item.answer_tokens is not None
    return item.answer_tokens[0], [tokens[0] for tokens in _others(item, plan)]
