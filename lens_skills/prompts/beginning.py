"""`initial_prompt`: what a soft prompt is before it is trained, and so its control."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt, as_lens
from lens_skills.models.floors import EMBEDDING

_SAMPLE = 1000  # tokens whose embeddings give the scale of all


def initial_prompt(
    model: Any,
    n_tokens: int = 8,
    *,
    n_prefix: int = 0,
    init: str | float = "vocabulary",
    text: str | None = None,
    seed: int = 0,
) -> SoftPrompt:
    """An untrained soft prompt, as `fit_prompt` begins with the same arguments.

    Args:
        model: A HookedTransformer or TransformerBridge.
        n_tokens: Vectors after the input.
        n_prefix: Vectors before it.
        init: ``"vocabulary"``: embeddings of random tokens; ``"normal"``: normal numbers as large
            as the model's embeddings; a number: normal numbers with that standard deviation.
        text: Instead: the embeddings of this text's tokens, repeated or cut to the length.
        seed: Of the random numbers.

    Source: Wang et al. 2022 (arXiv 2211.07349) begin from N(0, 1)/30: ``init=1/30``.

    Raises:
        LensSkillsError: No vectors at all, an unknown beginning, a text without tokens.
    """
    lens = as_lens(model)
    if min(n_tokens, n_prefix) < 0 or n_tokens + n_prefix == 0:
        raise LensSkillsError(
            f"a soft prompt of {n_tokens} vectors after the input and {n_prefix} before it. Give "
            "n_tokens=8, or n_prefix= for vectors before the input."
        )
    n_vectors = n_tokens + n_prefix
    if n_vectors >= lens.n_ctx:
        raise LensSkillsError(
            f"{n_vectors} soft tokens leave no room for an input: {lens.name} reads at most "
            f"{lens.n_ctx} tokens. Ask for fewer (n_tokens, n_prefix)."
        )
    generator = torch.Generator().manual_seed(seed)
    if text is not None:
        ids = lens.encode_plain(text)
        if not ids:
            raise LensSkillsError(f"text={text!r} has no tokens to begin a soft prompt from.")
        after, before = _repeated(ids, n_tokens), _repeated(ids, n_prefix)
        vectors, name = embeddings(lens, [*before, *after]), f"text {text!r}"
    elif init == "vocabulary":
        vectors, name = embeddings(lens, _tokens(lens, n_vectors, generator)), "vocabulary"
    elif init == "normal" or (isinstance(init, float | int) and not isinstance(init, bool)):
        if isinstance(init, str):
            # The same sample whatever the seed: the scale is the model's.
            sample = _tokens(lens, _SAMPLE, torch.Generator().manual_seed(0))
            scale, name = float(embeddings(lens, sample).double().std()), "normal"
        else:
            scale, name = float(init), f"normal {init:g}"
        vectors = scale * torch.randn(n_vectors, lens.d_model, generator=generator)
    else:
        raise LensSkillsError(
            f"no beginning {init!r}. Choose 'vocabulary', 'normal', a standard deviation (1/30), "
            "or give text='…'."
        )
    # Trained in full precision, whatever the model's: small steps must not be rounded away.
    vectors = vectors.to("cpu", torch.promote_types(lens.dtype, torch.float32))
    return SoftPrompt(
        suffix=vectors[n_prefix:].clone(),
        prefix=vectors[:n_prefix].clone(),
        model=lens.name,
        model_fingerprint=lens.fingerprint(),
        trained=False,
        init=name,
        seed=seed,
    )


def embeddings(lens: Any, ids: list[int]) -> Float[Tensor, "token d_model"]:
    """What stands for each token where soft vectors enter."""
    seen: list[Tensor] = []
    tokens = rearrange(torch.tensor(ids), "token -> token 1")
    # Each on its own, so that none is beyond the context.
    lens.forward(tokens, tokens >= 0, readers={EMBEDDING: seen.append}, logits_at=None)
    return rearrange(seen[0].detach(), "token 1 d_model -> token d_model").clone()


def _tokens(lens: Any, n: int, generator: torch.Generator) -> list[int]:
    """Random words of the vocabulary, without special tokens and without the unused end."""
    n_words = min(lens.d_vocab, len(lens.tokenizer)) if lens.tokenizer else lens.d_vocab
    special = set(lens.tokenizer.all_special_ids) if lens.tokenizer else set()
    words = torch.tensor([word for word in range(n_words) if word not in special])
    return _drawn(words, n, generator).tolist()


def _drawn(words: Int[Tensor, " word"], n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    return words[torch.randint(len(words), (n,), generator=generator)]


def _repeated(ids: list[int], n: int) -> list[int]:
    return (ids * (n // len(ids) + 1))[:n]
