"""Each kind of edit against numbers computed by hand from a plain cache of activations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.edits import Edit, ablate, clamp, patch, scale, steer
from lens_skills.models import as_adapter
from lens_skills.scoring import Selection

SITE = "mlp.hook_post"
WORDS = ("The key", "The keys to the cabinet", "The boys near the girl", "Tom and Anna", "A drink")


def examples(words: Sequence[str] = WORDS, **columns: Any) -> list[Example]:
    return [
        Example(id=f"e{place}", prompt=text, answer=" is", **columns)
        for place, text in enumerate(words)
    ]


def plain_cache(model: Any, prompt: str, layer: int, site: str = SITE) -> Tensor:
    """One unpadded prompt through the model: ``pos feature``, without lens_skills."""
    kept: list[Tensor] = []
    model.run_with_hooks(
        model.to_tokens(prompt),
        fwd_hooks=[(f"blocks.{layer}.{site}", lambda acts, hook: kept.append(acts.detach()))],
    )
    return kept[0][0].flatten(1)


def table(model: Any, split: Sequence[Example], layer: int, column: int = -1) -> Tensor:
    return torch.stack([plain_cache(model, item.prompt, layer)[column] for item in split])


def changed(
    model: Any,
    edit: Edit,
    targets: Sequence[Example],
    old: Tensor,
    features: Sequence[int],
    *,
    position: Any = "last",
    layer: int = 1,
    draw: int = 0,
    seed: int = 0,
    rows: Sequence[int] = (),
) -> Tensor:
    change = edit.bind(as_adapter(model), targets, {SITE: (0, layer)}, position=position, seed=seed)
    places = torch.tensor(list(rows) or list(range(len(old))))
    index = torch.tensor(list(features)).expand(len(old), -1)
    return change.new(layer, SITE, old, index, places, draw)


def test_zero_clamp_and_scale_need_no_source(tiny: Any) -> None:
    old = torch.randn(2, 1, 3)
    assert torch.equal(changed(tiny, ablate("zero"), [], old, [0, 1, 2]), torch.zeros_like(old))
    assert torch.equal(changed(tiny, clamp(to=2.5), [], old, [0, 1, 2]), torch.full_like(old, 2.5))
    assert torch.equal(changed(tiny, scale(by=-2), [], old, [0, 1, 2]), -2 * old)


def test_mean_and_std_are_those_of_the_split_at_that_position(tiny: Any) -> None:
    split, old, features = examples(), torch.randn(2, 1, 3), [5, 0, 47]
    by_hand = table(tiny, split, 1)[:, features].double()
    new = changed(tiny, ablate("mean", over=split), split[:2], old, features)
    torch.testing.assert_close(new, by_hand.mean(0).float().expand(2, 1, 3))
    new = changed(tiny, steer(by=-1.5, over=split), split[:2], old, features)
    std = by_hand.std(0, correction=0).float()
    torch.testing.assert_close(new, old - 1.5 * std.expand(2, 1, 3))


def test_several_positions_have_a_mean_each(tiny: Any) -> None:
    split, old = examples(), torch.randn(1, 2, 1)
    new = changed(tiny, ablate("mean", over=split), split, old, [7], position=[0, -1])
    by_hand = torch.stack([table(tiny, split, 1, column)[:, 7].mean() for column in (0, -1)])
    torch.testing.assert_close(new[0, :, 0], by_hand)


def test_everywhere_the_mean_is_over_all_prompt_tokens(tiny: Any) -> None:
    split, old = examples(), torch.randn(1, 4, 1)
    tokens = []
    for item in split:
        prompt = tiny.to_tokens(item.prompt)[0]
        start = 1 if int(prompt[0]) == tiny.tokenizer.bos_token_id else 0
        tokens.append(plain_cache(tiny, item.prompt, 1)[start:, 7])
    new = changed(tiny, ablate("mean", over=split), split, old, [7], position="all")
    torch.testing.assert_close(new, torch.cat(tokens).mean().expand(1, 4, 1))


def test_scores_and_a_selection_give_the_same_means(tiny: Any) -> None:
    split = [replace(item, labels={"x": place % 2}) for place, item in enumerate(examples() * 4)]
    split = [replace(item, id=f"i{place}", group="") for place, item in enumerate(split)]
    task = ls.Task("words", split)
    scores = ls.score(tiny, task, metrics="label:x", n_permutations=0, n_rotations=0)
    old = torch.randn(2, 1, 2)
    expected = changed(tiny, ablate("mean", over=task), split[:2], old, [5, 9])
    found = changed(tiny, ablate("mean", over=scores), split[:2], old, [5, 9])
    torch.testing.assert_close(found, expected)
    both = ls.score(
        tiny, task, metrics="label:x", position=[0, -1], n_permutations=0, n_rotations=0
    )
    for position in (-1, 0, [-1, 0]):
        wide = torch.randn(2, 2 if isinstance(position, list) else 1, 2)
        by_hand = changed(tiny, ablate("mean", over=task), split, wide, [5, 9], position=position)
        found = changed(tiny, ablate("mean", over=both), split, wide, [5, 9], position=position)
        torch.testing.assert_close(found, by_hand)
    unit = 48 + 5
    empty = torch.zeros(1, dtype=torch.float64)
    selection = Selection(
        neurons=torch.tensor([[1, 5]]),
        position=("last",),
        r_explore=empty,
        r_confirm=empty,
        p=empty,
        q=empty,
        mean=scores.mean[0, [unit]],
        std=scores.std[0, [unit]],
        metric="label:x",
        site=SITE,
        positions=("last",),
        attrition={},
        fdr=0.05,
    )
    found = changed(tiny, ablate("mean", over=selection), split[:2], old[..., :1], [5])
    torch.testing.assert_close(found, expected[..., :1])
    with pytest.raises(LensSkillsError, match=r"no numbers for feature 9 of mlp\.hook_post in lay"):
        changed(tiny, ablate("mean", over=selection), split[:2], old[..., :1], [9])
    with pytest.raises(LensSkillsError, match="at position last, but the edit acts at 0"):
        changed(tiny, ablate("mean", over=scores), split[:2], old, [5, 9], position=0)


def test_resampled_values_are_another_examples_and_all_come_up(tiny: Any) -> None:
    split, old, features = examples(), torch.randn(5, 1, 2), [3, 4]
    donors = table(tiny, split, 1)[:, features]
    edit = ablate("resample", over=split)
    change = edit.bind(as_adapter(tiny), split, {SITE: (1,)}, position="last")
    index = torch.tensor(features).expand(5, -1)
    seen: set[tuple[int, int]] = set()
    for draw in range(change.n_draws):
        new = change.new(1, SITE, old, index, torch.arange(5), draw)
        for row in range(5):
            match = (new[row, 0] - donors).abs().sum(1) < 1e-5
            assert int(match.sum()) == 1, "not the activations of one donor"
            seen.add((row, int(match.nonzero()[0, 0])))
    # Ten draws among four others: every other example is drawn, never the example itself.
    assert seen == {(row, donor) for row in range(5) for donor in range(5) if donor != row}


@pytest.mark.parametrize("kind", ["resample", "noise"])
@pytest.mark.parametrize("position", ["last", "all"])
def test_draws_belong_to_the_example_and_not_to_the_batch(
    tiny: Any, kind: Any, position: Any
) -> None:
    split, old = examples(), torch.randn(5, 3 if position == "all" else 1, 2)
    edit = ablate(kind, over=split)
    together = changed(tiny, edit, split, old, [3, 40], position=position)
    alone = changed(tiny, edit, split, old[3:4], [3, 40], rows=[3], position=position)
    torch.testing.assert_close(alone, together[3:4])
    one_unit = changed(tiny, edit, split, old[3:4, :, 1:], [40], rows=[3], position=position)
    torch.testing.assert_close(one_unit, together[3:4, :, 1:])
    reordered = changed(tiny, edit, split[::-1], old[3:4], [3, 40], rows=[1], position=position)
    torch.testing.assert_close(reordered, alone)
    longer = torch.cat([old, old], dim=1)
    if position == "all":  # columns past a row's prompt change nothing before them
        padded = changed(tiny, edit, split, longer, [3, 40], position=position)
        torch.testing.assert_close(padded[:, :3], together)
    other_draw = changed(tiny, edit, split, old, [3, 40], position=position, draw=1)
    other_seed = changed(tiny, edit, split, old, [3, 40], position=position, seed=1)
    assert not torch.equal(other_draw, together)
    assert not torch.equal(other_seed, together)


def test_noise_has_the_units_own_standard_deviation(tiny: Any) -> None:
    split = examples()
    old = torch.zeros(5, 1, 48)
    edit = ablate("noise", over=split, sd=2.0, draws=400)
    change = edit.bind(as_adapter(tiny), split, {SITE: (1,)}, position="last")
    index = torch.arange(48).expand(5, -1)
    noise = torch.cat([change.new(1, SITE, old, index, torch.arange(5), d) for d in range(400)])
    std = table(tiny, split, 1).double().std(0, correction=0)
    # 2,000 draws: the standard error of a standard deviation is 1.6 %.
    np.testing.assert_allclose(noise[:, 0].double().std(0) / std, 2.0, rtol=0.08)
    assert float((noise[:, 0].double().mean(0) / std).abs().max()) < 0.2


@pytest.mark.parametrize("position", ["last", 0, [0, -1]])
def test_a_patch_is_the_twins_activation(tiny: Any, position: Any) -> None:
    twins = [item.prompt[::-1] for item in examples()]
    split = [replace(item, corrupted=twin) for item, twin in zip(examples(), twins, strict=True)]
    columns = position if isinstance(position, list) else [{"last": -1}.get(position, position)]
    old, features = torch.randn(5, len(columns), 2), [1, 30]
    by_hand = torch.stack([plain_cache(tiny, twin, 1)[columns][:, features] for twin in twins])
    found = changed(tiny, patch("corrupted"), split, old, features, position=position)
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)
    paired = [Example(id=f"t{place}", prompt=twin) for place, twin in enumerate(twins)]
    found = changed(tiny, patch(paired), split, old, features, position=position)
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)
    fixed = changed(tiny, patch(paired[2]), split, old, features, position=position)
    torch.testing.assert_close(fixed, by_hand[2:3].expand(5, -1, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["last", "all"])
def test_identity_laws(tiny: Any, position: Any) -> None:
    split, index = examples(), torch.arange(48)[None]
    start = 1 if int(tiny.to_tokens("The")[0, 0]) == tiny.tokenizer.bos_token_id else 0
    whole = [plain_cache(tiny, item.prompt, 1) for item in split]
    edits = [
        (scale(by=1), 0.0),
        (steer(by=0, over=split), 0.0),
        (ablate("noise", over=split, sd=0), 0.0),
        (patch(split), 1e-5),  # batched and alone differ by rounding
    ]
    for edit, tolerance in edits:
        change = edit.bind(as_adapter(tiny), split, {SITE: (1,)}, position=position)
        for row, own in enumerate(whole):
            old = (own[-1:] if position == "last" else own[start:])[None]
            before = old.clone()
            new = change.new(1, SITE, old, index, torch.tensor([row]))
            torch.testing.assert_close(new, old, atol=tolerance, rtol=tolerance)
            assert torch.equal(old, before), "changed in place"


@pytest.mark.parametrize(
    "edit", [ablate("mean"), ablate("resample"), ablate("noise"), steer(by=1.0)]
)
def test_an_edit_without_its_source_says_so(tiny: Any, edit: Edit) -> None:
    with pytest.raises(LensSkillsError, match=r"needs a split for its .*over=explore"):
        edit.bind(as_adapter(tiny), examples(), {SITE: (0,)}, position="last")
    with pytest.raises(LensSkillsError, match=r"needs a split for its .*over=explore"):
        edit.hooks(tiny, ["L0N1"])


def test_sources_that_do_not_fit_are_refused(tiny: Any) -> None:
    adapter, split, sites = as_adapter(tiny), examples(), {SITE: (0,)}

    def bind(edit: Edit, position: Any = "last", targets: Any = split) -> Any:
        return edit.bind(adapter, targets, sites, position=position)

    with pytest.raises(LensSkillsError, match="'e0' has no corrupted twin"):
        bind(patch("corrupted"))
    with pytest.raises(LensSkillsError, match="3 examples to patch from, but 5 to patch"):
        bind(patch(split[:3]))
    with pytest.raises(LensSkillsError, match="'all' they must be as many"):
        bind(patch(split[1]), position="all")
    with pytest.raises(LensSkillsError, match="no example but 'e0' itself"):
        bind(ablate("resample", over=split[:1]), targets=split[:1])
    with pytest.raises(LensSkillsError, match="pools tokens"):
        bind(scale(by=1), position="mean")
    with pytest.raises(LensSkillsError, match="no ablation 'average'"):
        ablate("average")
    with pytest.raises(LensSkillsError, match="give a finite number"):
        steer(by=float("nan"))
    with pytest.raises(LensSkillsError, match="no source 'twin'"):
        patch("twin")


def test_an_edit_says_in_words_what_it_does() -> None:
    task = ls.Task("words", examples())
    assert ablate("mean", over=task).name == "mean ablation over words, 5 examples"
    assert ablate("noise", over=task, sd=2).name == "noise ablation of 2 std over words, 5 examples"
    assert patch(task).name == "patch from words, 5 examples"
    assert patch(task[0]).name == "patch from example e0"
    assert clamp(to=0.5).name == "clamping to 0.5"


def test_the_middle_of_a_bridges_block_is_not_the_stream(
    tiny_bridge: Any, tiny_hooked: Any
) -> None:
    """There only the second norm reads it: an edit would do less than its name says."""
    at = {"hook_resid_mid": (1,)}
    with pytest.raises(LensSkillsError, match="not the residual stream"):
        ablate("zero").bind(as_adapter(tiny_bridge), examples(), at, position="last")
    ablate("zero").bind(as_adapter(tiny_hooked), examples(), at, position="last")
