"""One number per example: correctness, and the model's confidence in its usual forms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.readout import Readout, answer_tokens, single_token_readout
from lens_skills.errors import LensSkillsError


@dataclass(frozen=True)
class Metric:
    """A named number per example, and what must be known to compute it.

    Attributes:
        name: How results call it.
        of: From a batch's `Readout` and its examples to ``float[batch]``.
        reads: The parts of the readout it needs; empty for a column of the task.
        unit: What its numbers are measured in.
    """

    name: str
    of: Callable[[Readout, Sequence[Any]], Tensor]
    reads: frozenset[str]
    unit: str = ""

    @property
    def known(self) -> bool:
        """Whether the metric is known before the model runs."""
        return not self.reads

    def __call__(
        self, logits: Float[Tensor, "batch d_vocab"], examples: Sequence[Any]
    ) -> Float[Tensor, " batch"]:
        """The metric of logits at the first answer token, for use outside a pass.

        Answers of several tokens need the whole readout and are refused here.
        """
        return self.of(single_token_readout(logits, examples, self.name, self.reads), examples)


def logit_diff() -> Metric:
    """Log-odds of the answer against the foil, in nats: the default causal metric.

    Log-probability of the answer minus that of the foil. For answers of one token this is exactly
    the difference of their logits, because the softmax's normaliser cancels; for several tokens
    the joint log-probabilities are compared. Without a foil, the best other option takes its
    place.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 2, for single tokens.
    """

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        answer = _need(readout.answer).log_probability
        # Read off the readout, not off this batch: the whole pass follows one rule.
        if readout.foil is not None:
            return answer - readout.foil.log_probability
        best = [
            max(
                p
                for option, p in zip(example.options, row.log_probability.tolist(), strict=True)
                if option != example.answer
            )
            for example, row in zip(examples, _need(readout.options), strict=True)
        ]
        return answer - torch.tensor(best, dtype=torch.float64)

    return Metric("logit_diff", compute, frozenset({"answer", "contrast"}), "nats")


def correct() -> Metric:
    """1 where the model, decoding greedily, writes the whole answer and then stops, else 0.

    Every answer token must be the first choice, and the first choice after the answer must not
    extend it (``12`` is no correct ``1``).
    """

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        answer = _need(readout.answer)
        return (answer.greedy & _need(answer.stops)).double()

    return Metric("correct", compute, frozenset({"answer", "stop"}), "0/1")


def first_token_correct() -> Metric:
    """1 where the first answer token is the model's first choice, else 0.

    Does not show that the answer is right: with SmolLM2 every answer that begins with a space
    and a digit shares its first token.
    """

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        first = torch.tensor([answer_tokens(example)[0] for example in examples])
        return (readout.logits.argmax(-1).cpu() == first).double()

    return Metric("first_token_correct", compute, frozenset({"logits", "tokens"}), "0/1")


def confidence(
    kind: Literal["top", "answer", "margin", "entropy"] = "top",
    *,
    over: Literal["vocabulary", "options"] = "vocabulary",
) -> Metric:
    """The model's confidence, read where the answer begins.

    Args:
        kind: ``"top"``: probability of the first choice (0 to 1). ``"answer"``: joint probability
            of the right answer (0 to 1). ``"margin"``: log-probability of the first choice minus
            that of the second (nats, >= 0). ``"entropy"``: -Σ p ln p (nats; *low* means sure).
        over: All tokens, or the example's answer options only: their joint probabilities,
            renormalised to sum to 1.

    >>> confidence("entropy", over="options").name
    'entropy:options'
    """
    names = {"top": "confidence", "answer": "answer_probability"}
    if kind not in ("top", "answer", "margin", "entropy"):
        raise LensSkillsError(
            f"no confidence of kind {kind!r}. Choose 'top', 'answer', 'margin' or 'entropy'."
        )
    if over not in ("vocabulary", "options"):
        raise LensSkillsError(f"confidence over {over!r}? Choose 'vocabulary' or 'options'.")
    name = names.get(kind, kind)
    unit = "nats" if kind in ("margin", "entropy") else "probability"
    if over == "options":
        reads = {"logits", "options", *(("tokens",) if kind == "answer" else ())}
        return Metric(f"{name}:options", _over_options(kind), frozenset(reads), unit)

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        if kind == "answer":
            return _need(readout.answer).log_probability.exp()
        return _spread(readout.log_probabilities, kind).cpu()

    return Metric(name, compute, frozenset({"answer" if kind == "answer" else "logits"}), unit)


def _over_options(kind: str) -> Callable[[Readout, Sequence[Any]], Tensor]:
    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        numbers = []
        for example, row in zip(examples, _need(readout.options), strict=True):
            shares = row.log_probability.log_softmax(-1)
            if kind == "answer":
                numbers.append(shares[example.options.index(example.answer)].exp())
            else:
                numbers.append(_spread(shares[None], kind)[0])
        return torch.stack(numbers)

    return compute


def _spread(log_probabilities: Float[Tensor, "batch choice"], kind: str) -> Float[Tensor, " batch"]:
    if kind == "entropy":
        return -(log_probabilities.exp() * log_probabilities.clamp(min=-1e4)).sum(-1)
    best = log_probabilities.topk(2, dim=-1).values
    return best[:, 0].exp() if kind == "top" else best[:, 0] - best[:, 1]


def _need(part: Any) -> Any:
    assert part is not None, "the readout lacks a part this metric reads"
    return part
