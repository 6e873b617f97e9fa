"""The next token: the likeliest, or drawn by each example's own random numbers."""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError

LIKELIEST = 2048  # tokens looked at first


def check_sampling(temperature: float, top_p: float) -> None:
    """Nothing; raises where the two cannot be."""
    if not (temperature >= 0 and temperature < float("inf")):
        raise LensSkillsError(f"temperature is 0 (the likeliest token) or more, not {temperature}.")
    if not 0 < top_p <= 1:
        raise LensSkillsError(f"top_p is a share above 0 and up to 1, not {top_p}.")


def chances(id: str, n: int, *, seed: int) -> Float[Tensor, " step"]:
    """One number in [0, 1) per token, the same for an example in whatever batch it stands.

    >>> chances("a", 3, seed=0).equal(chances("a", 5, seed=0)[:3])
    True
    """
    digest = hashlib.sha256(f"{seed}\0{id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(n, generator=generator, dtype=torch.float64)


def choose(
    log_probabilities: Float[Tensor, "batch d_vocab"],
    chance: Float[Tensor, " batch"],
    *,
    temperature: float,
    top_p: float,
) -> Int[Tensor, " batch"]:
    """One token per row.

    With temperature T the distribution is p^(1/T), normalised; of it only the likeliest tokens
    are kept whose share first reaches ``top_p`` (nucleus sampling), and ``chance`` is looked up in
    their cumulative distribution.

    Source: Holtzman et al. 2020, arXiv 1904.09751 (nucleus sampling).

    Args:
        log_probabilities: Of the next token, float64.
        chance: Uniform in [0, 1), one per row.
        temperature: 0 takes the likeliest token.
        top_p: 1 keeps all tokens.

    >>> spread = torch.tensor([[0.6, 0.3, 0.1]]).double().log()
    >>> chances = torch.tensor([0, 0.7, 0.99]).double()
    >>> [int(choose(spread, u[None], temperature=1, top_p=0.9)) for u in chances]
    [0, 1, 1]
    """
    if temperature == 0:
        return log_probabilities.argmax(-1)
    p = (log_probabilities / temperature).softmax(-1)
    if top_p < 1:
        # Sorting a whole vocabulary takes as long as a layer; a few thousand tokens mostly do.
        ordered, order = p.topk(min(LIKELIEST, p.shape[-1]), dim=-1)
        if bool((ordered.sum(-1) < top_p).any()):
            ordered, order = p.sort(dim=-1, descending=True)
        # A token is kept where those before it have not reached the share yet.
        kept = ordered.cumsum(-1) - ordered < top_p
        p = p * torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, kept)
    # In the vocabulary's order, not by size: two nearly equal tokens, whose order rounding may
    # turn, then do not trade places between one batch and another.
    below = p.cumsum(-1)
    whole = below[:, -1:]
    # A product may round up to the whole, and would then fall behind the last token kept.
    point = torch.minimum(chance[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return (below <= point).sum(-1)
