"""Prompts that a trained one is held against: random, shuffled, and as it began."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.models import SoftPrompt
from lens_skills.prompts.beginning import initial_prompt


def beginning_of(model: Any, prompt: SoftPrompt) -> SoftPrompt | None:
    """The prompt as it was before training; None where its provenance does not tell."""
    settings = prompt.provenance.get("settings", {})
    if not prompt.trained or "init" not in settings:
        return None
    return initial_prompt(
        model,
        len(prompt.suffix),
        n_prefix=len(prompt.prefix),
        init=settings["init"],
        text=settings.get("text"),
        seed=prompt.seed,
    )


def random_like(prompt: SoftPrompt, seed: int) -> SoftPrompt:
    """Random directions, each as long as the vector in its place."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(vectors: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        noise = torch.randn(vectors.shape, generator=generator, dtype=vectors.dtype)
        return noise * vectors.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)

    return _control(prompt, drawn(prompt.suffix), drawn(prompt.prefix), "random", seed)


def shuffled_like(prompt: SoftPrompt, seed: int) -> SoftPrompt | None:
    """The same vectors in another order; None where there is no other."""
    generator = torch.Generator().manual_seed(seed)

    def mixed(vectors: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        n_vectors = len(vectors)
        if n_vectors < 2:
            return vectors
        order = torch.randperm(n_vectors, generator=generator)
        while bool((order == torch.arange(n_vectors)).all()):
            order = torch.randperm(n_vectors, generator=generator)
        return vectors[order]

    if max(len(prompt.suffix), len(prompt.prefix)) < 2:
        return None
    return _control(prompt, mixed(prompt.suffix), mixed(prompt.prefix), "shuffled", seed)


def _control(
    prompt: SoftPrompt,
    suffix: Float[Tensor, "suffix d_model"],
    prefix: Float[Tensor, "prefix d_model"],
    init: str,
    seed: int,
) -> SoftPrompt:
    # What a shuffled prompt was trained on, it may know by heart: the provenance stays.
    return replace(
        prompt, suffix=suffix, prefix=prefix, trained=False, init=init, seed=seed, curve=()
    )
