"""What the stream hands out is what each example alone would give, at every position and site."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.activations import Batch, span, stream
from lens_skills.data import Example
from lens_skills.models.backends import BridgeAdapter, HookedAdapter
from lens_skills.settings import config

PROMPTS = (
    "The keys",
    "The key to the cabinets is on the",
    "What is 3 plus 4? A: ",
    "The author near the doctors was here. The keys to the cabinet",
    "When Mary and John went to the store, John gave a drink to Mary. The keys and",
    "The boys, the keys",
    "What is 12 minus 5? The keys? A: ",
    "true or false: the girl has the keys",
)
EXAMPLES = [
    Example(
        id=f"e{place}",
        prompt=prompt,
        answer=" is" if not prompt.endswith(" ") else "12",
        labels={"odd": place % 2, "piece": prompt.split()[1]},
    )
    for place, prompt in enumerate(PROMPTS)
]
WITH_KEYS = [example for example in EXAMPLES if "keys" in example.prompt]


def tokens_of(model: Any, prompt: str) -> list[int]:
    return model.to_tokens(prompt)[0].tolist()


def plain(model: Any, prompt: str, names: Sequence[str]) -> Tensor:
    """Activations of one prompt alone, ``[hook pos neuron]``, by TransformerLens itself."""
    with torch.no_grad():
        _, cache = model.run_with_cache(
            torch.tensor([tokens_of(model, prompt)]), names_filter=lambda name: name in names
        )
    return torch.stack([cache[name][0].flatten(1) for name in names])


KNOWN: dict[tuple[str, str], Tensor] = {}


def posts(model: Any, prompt: str) -> Tensor:
    """``mlp.hook_post`` of all layers, ``[layer pos neuron]``."""
    key = (type(model).__name__, prompt)
    if key not in KNOWN:
        names = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers)]
        KNOWN[key] = plain(model, prompt, names)
    return KNOWN[key]


def gathered(batches: Iterator[Batch], n: int) -> list[Tensor]:
    """Activations by the place of their example; positions beyond the mask cut off."""
    found: dict[int, Tensor] = {}
    for batch in batches:
        for row, place in enumerate(batch.index.tolist()):
            assert place not in found
            own = batch.activations[row]
            found[place] = own if batch.mask is None else own[batch.mask[row]]
    return [found[place] for place in range(n)]


def pieces(model: Any, prompt: str) -> list[str]:
    return [model.tokenizer.decode([token]) for token in tokens_of(model, prompt)]


def keys_at(model: Any, prompt: str) -> int:
    """Place of the last token that is " keys" (the tokenizer keeps the word whole)."""
    texts = pieces(model, prompt)
    return max(place for place, text in enumerate(texts) if text.strip() == "keys")


# Each position with what it means for the activations [layer pos neuron] of one prompt alone.
POSITIONS: dict[str, tuple[Any, Any]] = {
    "last": ("last", lambda acts, model, prompt: acts[:, -1]),
    "first index": (1, lambda acts, model, prompt: acts[:, 1]),
    "index from the end": (-2, lambda acts, model, prompt: acts[:, -2]),
    "span": (span("keys"), lambda acts, model, prompt: acts[:, keys_at(model, prompt)]),
    "span, first token": (
        span("The keys", take="first"),
        lambda acts, model, prompt: acts[:, keys_at(model, prompt) - 1],
    ),
    "span, mean": (
        span("The keys", take="mean"),
        lambda acts, model, prompt: acts[
            :, keys_at(model, prompt) - 1 : keys_at(model, prompt) + 1
        ].mean(1),
    ),
    # The beginning-of-sequence token is no part of the text.
    "mean": ("mean", lambda acts, model, prompt: acts[:, 1:].mean(1)),
    "max": ("max", lambda acts, model, prompt: acts[:, 1:].amax(1)),
    "all": ("all", lambda acts, model, prompt: acts[:, 1:].transpose(0, 1)),
    "list": (
        [1, "last", -2, span("keys")],
        lambda acts, model, prompt: acts[:, [1, -1, -2, keys_at(model, prompt)]].transpose(0, 1),
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_batched_equals_one_by_one_by_transformer_lens(tiny: Any, name: str) -> None:
    position, expect = POSITIONS[name]
    examples = EXAMPLES
    if "span" in name or name == "list":
        examples = [e for e in EXAMPLES if ("The keys" if "," in name else "keys") in e.prompt]
    assert len(examples) >= 3
    for batch_size in (1, 3):
        # Answer metrics make the model read the answers too; they must not be read out as prompt.
        with config(batch_size=batch_size):
            batches = list(stream(tiny, examples, position=position, metrics=["correct"]))
        for example, found in zip(examples, gathered(batches, len(examples)), strict=True):
            expected = expect(posts(tiny, example.prompt), tiny, example.prompt)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "at", ["mlp.hook_post", "mlp.hook_pre", "mlp.hook_pre_linear", "hook_resid_post", "attn.hook_z"]
)
def test_every_site_and_some_layers(tiny: Any, at: str) -> None:
    with config(batch_size=3):
        batches = list(stream(tiny, EXAMPLES, at=at, layers=[-1, 1]))
    for example, found in zip(EXAMPLES, gathered(batches, len(EXAMPLES)), strict=True):
        expected = plain(tiny, example.prompt, [f"blocks.1.{at}", f"blocks.3.{at}"])[:, -1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_a_full_name_is_one_layer(tiny: Any) -> None:
    full = next(stream(tiny, EXAMPLES, at="blocks.2.mlp.hook_post"))
    short = next(stream(tiny, EXAMPLES, layers=2))
    torch.testing.assert_close(full.activations, short.activations, rtol=0, atol=0)
    assert full.activations.shape[1:] == (1, 48)


def test_a_span_may_differ_per_example(tiny: Any) -> None:
    by_column = stream(tiny, EXAMPLES, position=span(column="piece"))
    for example, found in zip(EXAMPLES, gathered(by_column, len(EXAMPLES)), strict=True):
        alone = gathered(stream(tiny, [example], position=span(example.prompt.split()[1])), 1)[0]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=2e-5)


def test_the_last_occurrence_of_a_span_counts(tiny: Any) -> None:
    prompt = "The keys and the keys and the boys"
    example = Example(id="a", prompt=prompt)
    (found,) = gathered(stream(tiny, [example], position=span("keys")), 1)
    places = [place for place, text in enumerate(pieces(tiny, prompt)) if text == " keys"]
    assert len(places) == 2
    torch.testing.assert_close(found, posts(tiny, prompt)[:, places[1]], rtol=1e-4, atol=2e-5)


def test_every_example_comes_once_in_batches_of_like_length(tiny: Any) -> None:
    with config(batch_size=3):
        batches = list(stream(tiny, EXAMPLES))
    assert [len(batch.index) for batch in batches] == [3, 3, 2]
    order = torch.cat([batch.index for batch in batches]).tolist()
    assert sorted(order) == list(range(len(EXAMPLES)))
    lengths = [len(tokens_of(tiny, EXAMPLES[place].prompt)) for place in order]
    assert lengths == sorted(lengths)
    for batch in batches:
        assert [item.id for item in batch.examples] == [EXAMPLES[i].id for i in batch.index]
        expected = [EXAMPLES[i].labels["odd"] for i in batch.index]
        assert [item.labels["odd"] for item in batch.examples] == expected


def test_skipping_batches_leaves_the_rest_as_it_was(tiny: Any) -> None:
    with config(batch_size=3):
        whole = list(stream(tiny, EXAMPLES))
    with config(batch_size=3):
        rest = list(stream(tiny, EXAMPLES, skip=1))
    assert len(rest) == len(whole) - 1
    for a, b in zip(whole[1:], rest, strict=True):
        assert torch.equal(a.index, b.index)
        torch.testing.assert_close(a.activations, b.activations, rtol=0, atol=0)


@pytest.mark.parametrize("position", ["last", "mean", "all", [1, "last"]])
def test_activations_own_their_memory(tiny: Any, position: Any) -> None:
    """No view keeps a whole layer's activations of the batch alive."""
    with config(batch_size=3):
        for batch in stream(tiny, EXAMPLES, position=position):
            acts = batch.activations
            assert acts.untyped_storage().nbytes() == acts.numel() * acts.element_size()
            assert not acts.requires_grad


def test_a_kept_batch_does_not_change_as_the_pass_goes_on(tiny: Any) -> None:
    kept, copies = [], []
    with config(batch_size=3):
        for batch in stream(tiny, EXAMPLES):
            kept.append(batch.activations)
            copies.append(batch.activations.clone())
    for one, other in zip(kept, copies, strict=True):
        assert torch.equal(one, other)


class Spy:
    """Counts vocabulary projections: rows that pass the unembedding, and what adapters ask for."""

    def __init__(self, model: Any, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[Tensor | None] = []
        self.rows = 0
        self.handle = model.unembed.register_forward_hook(self._count)
        for kind in (HookedAdapter, BridgeAdapter):
            real = kind.forward

            def forward(adapter: Any, *args: Any, _real: Any = real, **kwargs: Any) -> Any:
                self.asked.append(kwargs["logits_at"])
                return _real(adapter, *args, **kwargs)

            patch.setattr(kind, "forward", forward)

    def _count(self, module: Any, args: Any, out: Tensor) -> None:
        self.rows += out.shape[:-1].numel()


@pytest.fixture
def spy(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    found = Spy(tiny, monkeypatch)
    yield found
    found.handle.remove()


def test_no_logits_where_no_metric_reads_them(tiny: Any, spy: Spy) -> None:
    with config(batch_size=3):
        list(stream(tiny, EXAMPLES, metrics="label:odd"))
    assert spy.asked == [None] * 3
    assert spy.rows == 0


def test_logits_only_at_the_positions_a_metric_reads(tiny: Any, spy: Spy) -> None:
    with config(batch_size=3):
        list(stream(tiny, EXAMPLES, metrics="confidence"))
    assert [tuple(at.shape) for at in spy.asked if at is not None] == [(3, 1), (3, 1), (2, 1)]
    assert spy.rows == len(EXAMPLES)


def test_the_model_is_left_as_it_was(tiny: Any) -> None:
    """Also in the middle of a pass and after an interruption."""
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    seen: list[int] = []
    point = tiny.blocks[1].mlp.hook_post if hasattr(tiny.blocks[1].mlp, "hook_post") else None
    point = point or tiny.hook_dict["blocks.1.mlp.hook_post"]
    point.add_hook(lambda activation, hook: seen.append(len(activation)))
    hooks = len(point.fwd_hooks)

    def interrupt(logits: Tensor, examples: Sequence[Any]) -> Tensor:
        raise KeyboardInterrupt

    try:
        running = stream(tiny, EXAMPLES)
        with config(batch_size=3):
            next(running)
        assert len(point.fwd_hooks) == hooks
        running.close()
        with pytest.raises(KeyboardInterrupt):
            list(stream(tiny, EXAMPLES, metrics=interrupt))
        assert len(point.fwd_hooks) == hooks
        assert seen == [3, 8]
        others = [p.fwd_hooks for p in tiny.hook_dict.values() if p is not point]
        assert not any(others)
        assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    finally:
        tiny.reset_hooks()
