"""Tasks in turn: the masks are what they say, the measures what a loop gives, and both resume."""

import importlib
import math
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import lens_skills as ls
from lens_skills import checkpoints
from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.finetuning import Continual, continual, masked_training
from lens_skills.finetuning.task_neurons import (
    MASKS,
    importance,
    mask_of,
    share_of_current,
)
from lens_skills.models import as_adapter
from lens_skills.stats.finite_sample import student_interval

verb = importlib.import_module("lens_skills.finetuning.continual")  # the file, not the verb


def task(word: str, n: int = 12) -> list[Example]:
    """Questions with one word, in groups of their number over all tasks."""
    return [
        Example(
            id=f"{word}{a}", prompt=f"What is {a} {word} {a % 3}?\nA: ", answer=str(a % 5),
            foil=str(a % 5 + 1), group=str(a),
        )
        for a in range(n)
    ]  # fmt: skip


TASKS = {"plus": task("plus"), "minus": task("minus"), "times": task("times")}
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 4, "seeds": 1}


def made(accuracy: Tensor, **options: Any) -> Continual:
    n = accuracy.shape[-1]
    n_seeds = accuracy.shape[1]
    asked: dict[str, Any] = {
        "tasks": tuple("abcdefg"[:n]),
        "masks": ("full", "ncft", "random")[: len(accuracy)],
        "seeds": tuple(range(n_seeds)),
        "accuracy": accuracy.double(),
        "n_neurons": 9,
        "n_trained": (100,) * len(accuracy),
        "jaccard": torch.rand(n_seeds, n, n, dtype=torch.float64),
        "transfer": torch.rand(n_seeds, n, n, dtype=torch.float64),
        "n_test": (25,) * n,
        "n_learned": (60,) * n,
        "provenance": {"model": "planted"},
    }
    return Continual(**asked | options)


def test_the_measures_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    acc = torch.rand(3, 4, 5, 4, generator=generator, dtype=torch.float64)
    found = made(acc)
    for m in range(3):
        for s in range(4):
            r = acc[m, s]  # r[i, j]: after i tasks, on task j
            n = 4
            loops = {
                "final": sum(float(r[n, j]) for j in range(n)) / n,
                "learned": sum(float(r[j + 1, j]) for j in range(n)) / n,
                "forgetting": sum(
                    max(float(r[i, j]) for i in range(n)) - float(r[n, j]) for j in range(n - 1)
                )
                / (n - 1),
                "backward": sum(float(r[n, j] - r[j + 1, j]) for j in range(n - 1)) / (n - 1),
                "forward": sum(float(r[j, j] - r[0, j]) for j in range(1, n)) / (n - 1),
            }
            for name, value in loops.items():
                assert float(found.values(name)[m, s]) == pytest.approx(value)


def test_intervals_are_students_and_differences_are_paired() -> None:
    acc = torch.rand(3, 5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = made(acc)
    rows = found.summary().set_index(["mask", "measure"])
    numbers = found.values("final")[1].numpy()
    ends = stats.ttest_1samp(numbers, 0).confidence_interval(0.95)
    cell = rows.loc[("ncft", "final")]
    assert (cell["low"], cell["high"]) == pytest.approx((ends.low, ends.high))
    apart = found.differences("ncft").set_index(["against", "measure"]).loc[("full", "forgetting")]
    forgot = found.values("forgetting").numpy()
    ends = stats.ttest_rel(forgot[1], forgot[0]).confidence_interval(0.95)
    assert (apart["low"], apart["high"]) == pytest.approx((ends.low, ends.high))
    final = found.values("final").numpy()
    assert found.kept("ncft")[0] == pytest.approx(np.mean(final[1] - 0.95 * final[0]))


def test_five_seeds_cover_as_often_as_the_interval_says() -> None:
    draws = torch.randn(4000, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, low, high = student_interval(draws)
    assert float(((low < 0) & (high > 0)).double().mean()) == pytest.approx(0.95, abs=0.008)
    assert all(math.isnan(float(end)) for end in student_interval(torch.ones(1))[1:])


def test_overlap_and_transfer_are_compared_by_rank_over_all_relabelings() -> None:
    generator = torch.Generator().manual_seed(3)
    acc = torch.rand(1, 2, 5, 4, generator=generator, dtype=torch.float64)
    overlap = torch.rand(4, 4, generator=generator, dtype=torch.float64)
    noisy = overlap + 0.1 * torch.rand(4, 4, generator=generator, dtype=torch.float64)
    found = made(acc, jaccard=overlap.repeat(2, 1, 1), transfer=noisy.repeat(2, 1, 1))
    off = ~np.eye(4, dtype=bool)
    r, p = found.overlap_and_transfer()
    assert r == pytest.approx(stats.spearmanr(overlap.numpy()[off], noisy.numpy()[off])[0])
    reached = [
        float(
            np.asarray(stats.spearmanr(overlap.numpy()[off], noisy.numpy()[np.ix_(o, o)][off]))[0]
        )
        >= r - 1e-9
        for o in permutations(range(4))
    ]
    assert p == pytest.approx(np.mean(reached))
    assert "over 12 pairs" in repr(found)
    assert "none can be below 0.042" in repr(found)
    flat = made(acc, jaccard=torch.ones(2, 4, 4, dtype=torch.float64))
    assert all(math.isnan(number) for number in flat.overlap_and_transfer())


def keep(kept: dict[int, Tensor], layer: int, activation: Tensor) -> Tensor:
    kept[layer] = activation
    return activation


def test_importance_is_that_of_a_loop_over_examples_and_layers(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    rows = encode_examples(adapter, TASKS["plus"], answers=True)
    expected = torch.zeros(4, 48, dtype=torch.float64)
    for row in rows:
        tokens = torch.tensor([[*row.prompt_tokens.tolist(), *(row.answer_tokens or ())[:-1]]])
        kept: dict[int, Tensor] = {}
        hooks = [
            (
                f"blocks.{layer}.mlp.hook_post",
                lambda a, hook, layer=layer, kept=kept: keep(kept, layer, a),
            )
            for layer in range(4)
        ]
        with torch.enable_grad():
            logits = tiny.run_with_hooks(tokens, fwd_hooks=hooks)
            answer = torch.tensor(row.answer_tokens)
            start = len(row.prompt_tokens) - 1
            picked = logits[0, start:].log_softmax(-1).gather(-1, answer[:, None])
            slopes = torch.autograd.grad(-picked.sum(), [kept[layer] for layer in range(4)])
        for layer, slope in enumerate(slopes):
            expected[layer] += (kept[layer] * slope)[0].abs().sum(0).detach().double()
    found = importance(adapter, rows, batch_size=5)
    torch.testing.assert_close(found, expected / len(rows), rtol=1e-3, atol=1e-6)


def test_each_mask_is_what_it_says(tiny_hooked: Any) -> None:
    adapter = as_adapter(tiny_hooked)
    rows = encode_examples(adapter, TASKS["plus"], answers=True)
    scores = importance(adapter, rows)
    earlier = [importance(adapter, encode_examples(adapter, TASKS["minus"], answers=True))]
    k = 20

    def of(kind: str, seed: int = 0) -> Any:
        return mask_of(
            kind, None, "plus", adapter, ls.Task("plus", TASKS["plus"]),
            scores=scores, earlier=earlier, k=k, metric=None, seed=seed,
        )  # fmt: skip

    chosen = {tuple(row) for row in of("ncft").units.tolist()}
    order = sorted(
        ((float(scores[at, n]), at, n) for at in range(4) for n in range(48)), reverse=True
    )
    assert chosen == {(at, n) for _, at, n in order[:k]}
    assert of("full").units is None
    random = [{tuple(row) for row in of("random", seed).units.tolist()} for seed in (0, 1)]
    assert random[0] != random[1]
    assert not random[0] & chosen
    assert Counter(at for at, _ in random[0]) == Counter(at for at, _ in chosen)
    weighted = of("w_ncft")
    assert {tuple(row) for row in weighted.units.tolist()} == chosen
    for (at, n), rate in zip(weighted.units.tolist(), weighted.rates.tolist(), strict=True):
        now = float(scores[at, n] / scores.sum())
        before = float(earlier[0][at, n] / earlier[0].sum())
        assert rate == pytest.approx(now / (now + before))
    ranking = ls.rank(tiny_hooked, ls.Task("plus", TASKS["plus"]), "logit_diff")
    assert of("top_r").units.tolist() == ranking.top(k).rows.tolist()
    assert set(MASKS) == {"full", "ncft", "w_ncft", "random", "top_r"}


def test_a_neuron_of_earlier_tasks_alone_is_not_trained() -> None:
    found = share_of_current(torch.tensor([[0.0, 5.0, 5.0]]), [torch.tensor([[9.0, 0.0, 9.0]])])
    assert found.tolist() == [[0.0, 1.0, 0.5]]


def test_tasks_in_turn(tiny: Any) -> None:
    before = [p.detach().clone() for p in tiny.parameters()]
    found = continual(tiny, TASKS, lr=0.01, **QUICK)
    assert all(torch.equal(old, new) for old, new in zip(before, tiny.parameters(), strict=True))
    assert found.accuracy.shape == (5, 1, 4, 3)
    assert bool((found.accuracy[:, :, 0] == found.accuracy[:1, :, 0]).all())  # one beginning
    one, other = (found.accuracy[found.masks.index(name)] for name in ("ncft", "w_ncft"))
    assert torch.equal(one[:, 1], other[:, 1])  # alike until there is an earlier task
    full = found.accuracy[found.masks.index("full")]
    torch.testing.assert_close(found.transfer[:, 0], full[:, 1] - full[:, 0])
    assert found.n_neurons == round(0.1 * 4 * 48)
    sizes = dict(zip(found.masks, found.n_trained, strict=True))
    assert sizes["ncft"] == sizes["random"] == sizes["top_r"] == 3 * 32 * found.n_neurons
    assert len(found.frame()) == 5 * 4 * 3
    assert found.matrix("ncft").shape == (4, 3)
    assert "ncft less random: forgotten" in repr(found)


def test_a_group_is_on_one_side_in_all_tasks() -> None:
    parts = verb._divide({n: ls.Task(n, e) for n, e in TASKS.items()}, 0.2, 0.3, 5)
    for one in parts.values():
        for other in parts.values():
            for mine, theirs in permutations(("learned", "held_out", "test"), 2):
                assert not set(getattr(one, mine).groups) & set(getattr(other, theirs).groups)


def test_a_killed_run_goes_on_with_the_same_numbers(
    tiny_hooked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = QUICK | {"masks": ("full", "w_ncft"), "lr": 0.01, "seeds": 2}
    whole = continual(tiny_hooked, TASKS, **asked)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    real, calls = masked_training.train, []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 6, 9):  # within a sequence, under each mask, and in a task alone
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(verb, "train", killed)
    folder = tmp_path / "kept"
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt, match="goes on there"):
            continual(tiny_hooked, TASKS, checkpoint=folder, **asked)
    resumed = continual(tiny_hooked, TASKS, checkpoint=folder, **asked)
    for name in ("accuracy", "jaccard", "transfer"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name))
    assert whole.n_trained == resumed.n_trained
    assert not folder.exists()
    assert len(calls) <= 16 + 3 + 1  # at most the begun task alone is done again
    with pytest.raises(LensSkillsError, match="no mask"):
        whole.matrix("ncft")


def test_own_neurons_and_rates_by_mask(tiny_hooked: Any, tmp_path: Path) -> None:
    own = {"plus": ["L1N2"], "minus": ["L1N3", "L2N4"], "times": [(0, 1)]}
    found = continual(
        tiny_hooked, TASKS, masks={"full": None, "mine": own}, lr={"full": 1e-3, "mine": 1e-2},
        transfer=False, **QUICK,
    )  # fmt: skip
    assert found.masks == ("full", "mine")
    assert found.n_trained[1] == 3 * 32
    assert len(found.transfer) == 0
    assert "overlap" not in repr(found)
    assert "one seed: no interval" in repr(found)
    read = ls.load(found.save(tmp_path / "c"))
    assert torch.equal(read.accuracy, found.accuracy)
    assert repr(read) == repr(found)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tasks": {"plus": TASKS["plus"]}}, "1 tasks: what is forgotten"),
        ({"tasks": TASKS | {"again": TASKS["plus"][:3]}}, "'plus' and 'again' share 3 examples"),
        ({"tasks": {"a": [Example("a", "x")], "b": TASKS["plus"]}}, "has no answer"),
        ({"masks": ()}, "no masks"),
        ({"masks": ("full", "best")}, "no mask 'best'"),
        ({"masks": {"mine": {"plus": ["L0N0"]}}}, "needs neurons for each task"),
        ({"masks": {"mine": {key: ["L0N99"] for key in TASKS}}}, "layer 0 has 48 neurons"),
        ({"masks": {"mine": {key: [] for key in TASKS}}}, "the mask trains nothing"),
        ({"share": 0.001}, "the mask trains nothing"),
        ({"share": 1.5}, "at most 1"),
        ({"test": 0.9, "held_out": 0.2}, "together below 1"),
        ({"seeds": 0}, "seeds=0"),
        ({"lr": {"full": 0.1}}, "no learning rate for 'ncft'"),
        ({"lr": {"full": 0.1, "ncft": 0.1, "mine": 1.0}}, "'mine', which is no mask"),
        ({"tasks": {n: e[:2] for n, e in TASKS.items()}}, "leave part|too few"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tiny_hooked: Any, options: dict[str, Any], complaint: str
) -> None:
    asked: dict[str, Any] = {"tasks": TASKS, "masks": ("full", "ncft")} | QUICK | options
    with pytest.raises(LensSkillsError, match=complaint):
        continual(tiny_hooked, **asked)


def test_random_neurons_that_are_not_there_are_said(tiny_hooked: Any) -> None:
    with pytest.raises(LensSkillsError, match="hold only"):
        continual(tiny_hooked, TASKS, masks=("random",), share=0.9, **QUICK)


def test_a_card_says_what_is_reached() -> None:
    acc = torch.zeros(2, 5, 3, 2, dtype=torch.float64)
    acc[:, :, -1] = 0.5 + 0.01 * torch.rand(2, 5, 2, dtype=torch.float64)
    assert "ncft reaches 95%" in repr(made(acc))
    worse = acc.clone()
    worse[1, :, -1] = 0.1
    assert "ncft falls short of 95%" in repr(made(worse))
    assert "may not reach" in repr(
        replace(
            made(acc),
            accuracy=acc
            * torch.linspace(0.6, 1.4, 5)[:, None, None]
            * torch.tensor([1.0, 0.95])[:, None, None, None],
        )
    )
