"""A circuit that is known: two hops through a private direction, and three decoys beside it.

    word → U → d → N → answer

*U* fires for the words of one class and writes the direction ``d``; *N* reads ``d`` and nothing
else and writes towards the answer. *Mute* fires as U does and writes nothing. *Unread* fires as U
does and writes, less strongly, a direction N does not read: it can reach N through the norm's
scale only.
*Idle* reads ``d`` as N does and writes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lens_skills.data import Example
from lens_skills.models import as_adapter
from tests.planted import mlp_inputs, planted

U, N, MUTE, UNREAD, IDLE = 5, 11, 17, 23, 29
WORDS = (
    " key", " table", " author", " doctor", " boy", " girl", " store", " drink", " Mary", " Tom",
    " Anna", " said", " near", " the", " walks", " went", " gave", " judge", " actor", " and",
)  # fmt: skip


@dataclass(frozen=True)
class PlantedCircuit:
    """The names of what was planted."""

    u: str
    n: str
    mute: str
    unread: str
    idle: str


def twins(
    n: int = 80,
    *,
    positive: str = " are",
    negative: str = " is",
    answer: str = " girl",
    foil: str = " table",
    words: Sequence[str] = WORDS,
    length: int = 5,
    seed: int = 0,
) -> list[Example]:
    """Random words that end in the positive word, and the same that end in the negative one."""
    random = np.random.default_rng(seed)
    contexts = ["The" + "".join(random.choice(words, size=length)) for _ in range(n)]
    return [
        Example(
            f"e{place}",
            context + positive,
            answer=answer,
            foil=foil,
            corrupted=context + negative,
        )
        for place, context in enumerate(contexts)
    ]


@contextmanager
def planted_circuit(
    model: Any,
    examples: Sequence[Example],
    *,
    layers: tuple[int, int] = (1, 2),
    reach: float = 4.0,
    gain: float = 3.0,
) -> Iterator[PlantedCircuit]:
    """The model with the circuit and its decoys in it; its weights are restored exactly.

    Args:
        examples: Clean prompts on which U fires, corrupted ones on which it does not.
        layers: Of U and of N.
        reach: How far N's input moves along ``d`` where U fires, in the unit of a normed stream.
        gain: What N adds to the logit difference where it fires, in nats, about.
    """
    adapter = as_adapter(model)
    clean = [adapter.encode(example.prompt) for example in examples]
    corrupted = [adapter.encode(str(example.corrupted)) for example in examples]
    low, high = layers
    gains, scale, stream = normed(model, high, clean + corrupted)
    d, e = quiet(stream, len(clean))
    d = d * (1 if float(stream.mean(0) @ d) <= 0 else -1)  # where nothing is said, N is shut
    written = reach * scale / 4.0  # U is about 4 where it fires
    with ExitStack() as stack:
        for neuron, writes in ((U, written * d), (MUTE, 0.0), (UNREAD, written / 4 * e)):
            stack.enter_context(planted(model, low, neuron, clean, corrupted, writes=writes))
        towards = answer_direction(adapter, examples[0])
        read = mlp_inputs(model, high, clean) @ (d / gains)
        fires = float((torch.nn.functional.silu(4.0 * read) * read).mean())
        step = towards * (gain * scale_at_the_end(adapter, model, clean) / fires)
        step = step / float(towards @ towards)
        for neuron, writes in ((N, step), (IDLE, 0.0)):
            stack.enter_context(
                planted(model, high, neuron, direction=d / gains, strength=4.0, writes=writes)
            )
        names = [(low, U), (high, N), (low, MUTE), (low, UNREAD), (high, IDLE)]
        yield PlantedCircuit(*(f"L{layer}N{neuron}" for layer, neuron in names))


def normed(
    model: Any, layer: int, sequences: Sequence[Sequence[int]]
) -> tuple[Tensor, float, Tensor]:
    """The norm's gain per feature, its scale in the mean, and the stream before its gain."""
    inputs = mlp_inputs(model, layer, sequences)
    norm = model.blocks[layer].ln2
    probe = torch.ones(1, inputs.shape[-1], dtype=next(model.parameters()).dtype)
    probe[:, ::2] = -1.0
    with torch.no_grad():
        gains = (norm(1e4 * probe) / probe)[0].double()
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(
            (args[0] if args else next(iter(kwargs.values())))[:, -1].detach().double()
        ),
        with_kwargs=True,
    )
    try:
        mlp_inputs(model, layer, sequences)
    finally:
        handle.remove()
    return gains, float(torch.cat(seen).square().mean(-1).sqrt().mean()), inputs / gains


def quiet(stream: Tensor, n_clean: int) -> Tensor:
    """Two directions in which the model says least, and nothing of clean against corrupted."""
    apart = stream[:n_clean].mean(0) - stream[n_clean:].mean(0)
    apart = apart / apart.norm()
    spread = torch.cov(stream.T)
    spread = spread + 1e6 * spread.diagonal().max() * torch.outer(apart, apart)
    return torch.linalg.eigh(spread).eigenvectors[:, :2].T


def answer_direction(adapter: Any, example: Example) -> Tensor:
    """What the logit difference of the example reads in the normed stream."""
    vectors, _ = adapter.unembed_vectors()
    right, wrong = (adapter.encode_plain(str(word))[0] for word in (example.answer, example.foil))
    return (vectors[:, right] - vectors[:, wrong]).double()


def scale_at_the_end(adapter: Any, model: Any, sequences: Sequence[Sequence[int]]) -> float:
    """The root mean square of the stream that enters the final norm, in the mean."""
    seen: list[Tensor] = []
    name = f"blocks.{adapter.n_layers - 1}.hook_resid_post"
    for sequence in sequences[:16]:
        with torch.no_grad():
            _, cache = model.run_with_cache(torch.tensor([list(sequence)]), names_filter=[name])
        seen.append(next(iter(cache.values()))[0, -1].double())
    return float(torch.stack(seen).square().mean(-1).sqrt().mean())
