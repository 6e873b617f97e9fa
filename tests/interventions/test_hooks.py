"""An edit as hooks does what hooks written by hand do, and leaves nothing behind."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.activations.components import parse_components, sites_of
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.batched_edits import edited_places, editing_of
from lens_skills.interventions.edits import ablate, clamp, edited, patch, scale, steer
from lens_skills.models import as_adapter
from tests.activations.test_components import selection
from tests.interventions.test_edits import examples, plain_cache, table

POST = "mlp.hook_post"
TEXT = "The keys to the cabinet"
SHORT = "The boys walk"


def logits(model: Any, tokens: Tensor, hooks: Sequence[Any] = (), **options: Any) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=list(hooks), **options)


def by_hand(layer: int, site: str, change: Callable[[Tensor], None]) -> tuple[str, Any]:
    """A hook that changes a copy of the flattened activation."""

    def hook(acts: Tensor, hook: Any) -> Tensor:
        new = acts.clone().flatten(2)
        change(new)
        return new.reshape(acts.shape)

    return f"blocks.{layer}.{site}", hook


def set_to(value: Any, column: Any, features: Any) -> Callable[[Tensor], None]:
    def change(flat: Tensor) -> None:
        flat[:, column, features] = value

    return change


def n_hooks(model: Any) -> int:
    return sum(len(point.fwd_hooks) for point in set(model.hook_dict.values()))


@pytest.mark.parametrize(
    ("unit", "layer", "site", "features"),
    [
        ("L1N5", 1, POST, slice(5, 6)),
        ("L2H3", 2, "attn.hook_z", slice(24, 32)),
        ("L0MLP", 0, "hook_mlp_out", slice(0, 32)),
    ],
)
@pytest.mark.parametrize(
    ("position", "column"), [(-1, -1), ("last", -1), (2, 2), ("all", slice(None))]
)
def test_hooks_equal_hand_written_ones(
    tiny: Any, unit: str, layer: int, site: str, features: slice, position: Any, column: Any
) -> None:
    tokens = tiny.to_tokens(TEXT)
    expected = logits(tiny, tokens, [by_hand(layer, site, set_to(0.7, column, features))])
    hooks = clamp(to=0.7).hooks(tiny, [unit], position=position)
    assert [name for name, _ in hooks] == [f"blocks.{layer}.{site}"]
    found = logits(tiny, tokens, hooks)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert float((found - logits(tiny, tokens)).abs().max()) > 1e-3, "nothing was edited"


def test_a_hook_acts_once_per_pass(tiny: Any) -> None:
    """A bridge knows a hook point by several names; doubling twice would make four."""
    tokens = tiny.to_tokens(TEXT)

    def double(flat: Tensor) -> None:
        flat[:, -1, 5] *= 3

    expected = logits(tiny, tokens, [by_hand(1, POST, double)])
    found = logits(tiny, tokens, scale(by=3).hooks(tiny, ["L1N5"]))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    with edited(tiny, ["L1N5"], scale(by=3)):
        torch.testing.assert_close(logits(tiny, tokens), expected, atol=1e-6, rtol=1e-6)


def test_the_mean_of_a_split_at_several_units_and_layers(tiny: Any) -> None:
    split, tokens = examples(), tiny.to_tokens(TEXT)
    means = {layer: table(tiny, split, layer).mean(0) for layer in (1, 3)}
    hand = [
        by_hand(1, POST, set_to(means[1][[5, 9]], -1, [5, 9])),
        by_hand(3, POST, set_to(means[3][47], -1, 47)),
    ]
    hooks = ablate("mean", over=split).hooks(tiny, [(1, 5), (3, 47), (1, 9)])
    torch.testing.assert_close(
        logits(tiny, tokens, hooks), logits(tiny, tokens, hand), atol=1e-5, rtol=1e-5
    )


def test_a_selection_is_its_own_source(tiny: Any) -> None:
    tokens, std = tiny.to_tokens(TEXT), torch.tensor([0.5, 2.0], dtype=torch.float64)
    skills = replace(selection([[1, 5], [1, 9]]), mean=std, std=std)

    def steered(flat: Tensor) -> None:
        flat[:, -1, [5, 9]] += 3 * std.float()

    expected = logits(tiny, tokens, [by_hand(1, POST, steered)])
    with edited(tiny, skills, steer(by=3)):
        torch.testing.assert_close(logits(tiny, tokens), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(LensSkillsError, match="at position last, but the edit acts at all"):
        steer(by=3).hooks(tiny, skills, position="all")


def test_a_patch_pairs_rows_with_its_examples(tiny: Any) -> None:
    sources = [Example(id="a", prompt=SHORT), Example(id="b", prompt="Tom and Anna")]
    tokens = tiny.to_tokens([TEXT, TEXT])
    there = torch.stack([plain_cache(tiny, item.prompt, 1)[-1, 5] for item in sources])
    expected = logits(tiny, tokens, [by_hand(1, POST, set_to(there, -1, 5))])
    found = logits(tiny, tokens, patch(sources).hooks(tiny, ["L1N5"]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(LensSkillsError, match="2 examples to patch from, but a batch of 3"):
        logits(tiny, tiny.to_tokens([TEXT] * 3), patch(sources).hooks(tiny, ["L1N5"]))


@pytest.mark.parametrize(
    "make",
    [
        lambda split: scale(by=1),
        lambda split: steer(by=0, over=split),
        lambda split: patch(split[0]),
    ],
)
def test_identity_laws(tiny: Any, make: Any) -> None:
    split = examples([TEXT])
    tokens = tiny.to_tokens(TEXT)
    hooks = make(split).hooks(tiny, ["L1N5", "L2H0", "L3MLP"])
    torch.testing.assert_close(logits(tiny, tokens, hooks), logits(tiny, tokens))
    assert ablate("mean", over=split).hooks(tiny, []) == []


def test_random_draws_follow_one_another_and_repeat_with_the_seed(tiny: Any) -> None:
    split, tokens = examples(), tiny.to_tokens([TEXT, TEXT])
    edit = ablate("resample", over=split)
    hooks = edit.hooks(tiny, ["L1N5"], seed=3)
    first, second = logits(tiny, tokens, hooks), logits(tiny, tokens, hooks)
    assert not torch.equal(first, second)
    again = edit.hooks(tiny, ["L1N5"], seed=3)
    assert torch.equal(logits(tiny, tokens, again), first)
    donors = table(tiny, split, 1)[:, 5]
    seen = []
    with edited(tiny, ["L1N5"], edit):
        tiny.run_with_hooks(
            tokens,
            fwd_hooks=[
                (f"blocks.1.{POST}", lambda acts, hook: seen.append(acts[:, -1, 5].detach()))
            ],
        )
    assert all(float((donors - value).abs().min()) < 1e-5 for value in seen[0])


# Padding.


def padded(model: Any, side: str) -> tuple[Tensor, Tensor]:
    rows = [model.to_tokens(text)[0] for text in (TEXT, SHORT)]
    width = max(len(row) for row in rows)
    tokens = torch.full((2, width), model.tokenizer.pad_token_id)
    mask = torch.zeros(2, width, dtype=torch.bool)
    for place, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[place, columns], mask[place, columns] = row, True
    return tokens, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", [-1, 1, -2, "all", [0, -1]])
def test_with_a_mask_a_padded_row_is_edited_at_its_own_tokens(
    tiny: Any, side: str, position: Any
) -> None:
    tokens, mask = padded(tiny, side)
    kept: list[Tensor] = []
    hooks = clamp(to=9.0).hooks(tiny, ["L1N5"], position=position, mask=mask)
    hooks.append((f"blocks.1.{POST}", lambda acts, hook: kept.append(acts[..., 5].detach())))
    logits(tiny, tokens, hooks)
    for row in range(2):
        real = mask[row].nonzero()[:, 0]
        spots = real if position == "all" else real[position]
        expected = torch.zeros(tokens.shape[1], dtype=torch.bool)
        expected[spots] = True
        assert torch.equal(kept[0][row] == 9.0, expected)


def test_without_a_mask_the_last_column_is_right_under_left_padding(tiny: Any) -> None:
    tokens, mask = padded(tiny, "left")
    hook = clamp(to=9.0).hooks(tiny, ["L1N5"])
    with edited(tiny, ["L1N5"], clamp(to=9.0)):
        adapter = as_adapter(tiny)
        last = torch.full((2, 1), tokens.shape[1] - 1)
        found = adapter.forward(tokens, mask, readers={}, logits_at=last)
    assert found is not None
    for row, text in enumerate((TEXT, SHORT)):
        alone = logits(tiny, tiny.to_tokens(text), hook)[0, -1]
        torch.testing.assert_close(
            found[row, 0].log_softmax(-1), alone.log_softmax(-1), atol=1e-4, rtol=1e-4
        )


def test_the_engine_edits_each_examples_own_tokens(tiny: Any) -> None:
    """What `editing_of` places in a padded batch equals hooks on each prompt alone."""
    from lens_skills.activations import evaluate, parse_metrics
    from lens_skills.activations.forward import forward_batch, prepare

    split = [
        Example(id="a", prompt=TEXT, answer=" is here now", foil=" are"),
        Example(id="b", prompt=SHORT, answer=" has", foil=" have a drink"),
    ]
    adapter, metrics = as_adapter(tiny), parse_metrics("logit_diff")
    units = parse_components(adapter, ["L1N5", "L0H2", "L2N40"])
    encoded, plan = prepare(adapter, split, metrics)
    for position in ("last", 1, [0, -1], "all"):
        places = edited_places(adapter, encoded, position)
        change = clamp(to=1.5).bind(adapter, split, sites_of(units), position=position)
        editing = editing_of(change, units, places)
        together = forward_batch(adapter, encoded[::-1], plan, metrics, {}, {}, editing)[
            "logit_diff"
        ]
        for row, item in enumerate(split[::-1]):
            # Indices from the start: the answer's tokens follow the prompt in the same pass.
            hooks = clamp(to=1.5).hooks(tiny, units, position=places[1 - row])
            with_answer = []
            for text in (item.answer, item.foil):
                tokens = tiny.to_tokens(item.prompt + str(text))
                shares = logits(tiny, tokens, hooks)[0].log_softmax(-1)
                start = len(encoded[1 - row].prompt_tokens)
                steps = range(start, tokens.shape[1])
                with_answer.append(sum(float(shares[p - 1, tokens[0, p]]) for p in steps))
            assert float(together[row]) == pytest.approx(with_answer[0] - with_answer[1], abs=1e-4)
        nothing = forward_batch(
            adapter, encoded, plan, metrics, {}, {}, editing_of(change, (), places)
        )
        clean = evaluate(tiny, split, "logit_diff")
        torch.testing.assert_close(nothing["logit_diff"], clean["logit_diff"])


# Generation.


def generate(model: Any, n: int = 4, **options: Any) -> list[int]:
    tokens = model.to_tokens(TEXT)
    out = model.generate(
        tokens, max_new_tokens=n, do_sample=False, stop_at_eos=False, verbose=False, **options
    )
    return out[0].tolist()


@pytest.mark.parametrize("position", [-1, "all"])
def test_generation_is_edited_at_every_step(tiny: Any, position: Any) -> None:
    """Greedy decoding by hand: each pass reads the whole text so far, edited at the same tokens."""
    n_prompt = tiny.to_tokens(TEXT).shape[1]
    text = tiny.to_tokens(TEXT)
    for _ in range(4):
        first = 0 if position == "all" else n_prompt - 1
        hand = by_hand(1, POST, set_to(25.0, slice(first, None), slice(0, 24)))
        best = logits(tiny, text, [hand])[0, -1].argmax()
        text = torch.cat([text, best.view(1, 1)], dim=1)
    with edited(tiny, [(1, index) for index in range(24)], clamp(to=25.0), position=position):
        assert generate(tiny) == text[0].tolist()
        assert generate(tiny, use_past_kv_cache=False) == text[0].tolist()
    assert generate(tiny) != text[0].tolist(), "the edit changed nothing"


def test_an_index_is_refused_where_generation_would_lose_count(tiny: Any) -> None:
    for position in (0, 2):
        with (
            pytest.raises(
                LensSkillsError,
                match=r"single one, as cached generation|loses count while a text grows",
            ),
            edited(tiny, ["L1N5"], clamp(to=1.0), position=position),
        ):
            generate(tiny)
    assert n_hooks(tiny) == 0


# Nothing is left behind, nothing of the user's is taken.


def test_an_exception_leaves_no_hook(tiny: Any) -> None:
    inside = []

    def fail() -> None:
        with edited(tiny, ["L1N5", "L2H1"], scale(by=0)):
            inside.append(n_hooks(tiny))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [2]
    assert n_hooks(tiny) == 0
    with pytest.raises(LensSkillsError), edited(tiny, ["L1N5"], ablate("mean")):
        raise AssertionError("not reached")
    assert n_hooks(tiny) == 0


def test_the_users_hooks_survive_and_still_act(tiny: Any) -> None:
    tokens, seen = tiny.to_tokens(TEXT), []
    point = tiny.hook_dict[f"blocks.1.{POST}"]
    tiny.add_hook(
        f"blocks.1.{POST}", lambda acts, hook: seen.append(float(acts[0, -1, 5].detach()))
    )
    before = list(point.fwd_hooks)
    try:
        with edited(tiny, ["L1N5"], clamp(to=4.0)), edited(tiny, ["L1N6"], clamp(to=4.0)):
            tiny(tokens)
        assert point.fwd_hooks == before
        tiny(tokens)
    finally:
        tiny.reset_hooks()
    # The user's hook came first, so it sees the model's own value both times.
    assert seen[0] == seen[1] != 4.0


@pytest.mark.parametrize("position", ["mean", 99, -99])
def test_positions_a_hook_cannot_find_are_refused(tiny: Any, position: Any) -> None:
    with pytest.raises(LensSkillsError):
        logits(tiny, tiny.to_tokens(TEXT), clamp(to=1).hooks(tiny, ["L1N5"], position=position))


def test_text_and_pairs_are_refused(tiny: Any) -> None:
    from lens_skills.activations import span

    with pytest.raises(LensSkillsError, match="not text"):
        clamp(to=1).hooks(tiny, ["L1N5"], position=span("key"))
    with pytest.raises(LensSkillsError, match="plain hooks do not know the examples"):
        patch("corrupted").hooks(tiny, ["L1N5"])
    with pytest.raises(LensSkillsError, match="a patch at 'all'"):
        patch(examples()[0]).hooks(tiny, ["L1N5"], position="all")
    tokens, mask = padded(tiny, "right")
    hooks = clamp(to=1).hooks(tiny, ["L1N5"], mask=mask)
    with pytest.raises(LensSkillsError, match="the mask has the shape"):
        logits(tiny, tokens[:, :3], hooks)


def test_gradients_flow_and_nothing_is_changed_in_place(tiny: Any) -> None:
    kept: list[Tensor] = []
    hooks = [(f"blocks.1.{POST}", lambda acts, hook: kept.append(acts))]
    hooks += scale(by=0.5).hooks(tiny, ["L1N5"])
    tiny.run_with_hooks(tiny.to_tokens(TEXT), fwd_hooks=hooks).sum().backward()
    tiny.zero_grad()
    assert float(kept[0][0, -1, 5].detach()) == pytest.approx(
        float(plain_cache(tiny, TEXT, 1)[-1, 5]), rel=1e-5
    )
