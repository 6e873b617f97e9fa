"""Chosen neurons are trained as an obvious loop trains them, and nothing else moves a bit."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills import checkpoints
from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.finetuning import FineTuned, finetune, masked_training
from lens_skills.finetuning.masked_training import FineTuningPlan, train
from lens_skills.models import as_adapter
from lens_skills.models.trainable import PARTS, copied, neuron_weights
from tests.models.test_suffix import build

SUMS = [
    Example(id=f"{a}+{b}", prompt=f"What is {a} plus {b}?\nA: ", answer=str(a + b))
    for a in range(2, 6)
    for b in range(3, 6)
]
HELD = [Example(id="h", prompt="What is 1 plus 1?\nA: ", answer="2")]
NEURONS = ["L1N3", "L3N40", "L1N7"]
QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 4, "held_out": HELD, "patience": 9}


def parameters(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in as_adapter(model).model.named_parameters()}


def test_everything_outside_the_mask_keeps_its_bits(tiny: Any) -> None:
    before = parameters(tiny)
    found = finetune(tiny, SUMS, NEURONS, weight_decay=0.5, lr=0.01, **QUICK)
    assert all(
        torch.equal(old, new)
        for old, new in zip(before.values(), parameters(tiny).values(), strict=True)
    )
    trained = found.apply(tiny)
    after, moved = parameters(trained), 0
    for name, old in before.items():
        changed = after[name] != old
        moved += int(changed.sum())
        if not changed.any():
            continue
        # Rows and columns of the three neurons alone, in whichever layout the matrix has.
        layer = 1 if ".1." in name else 3
        own = {1: {3, 7}, 3: {40}}[layer]
        rows, columns = (set(places.tolist()) for places in changed.nonzero().T)
        assert rows == own or columns == own, name
        assert "mlp" in name
    assert moved == found.n_trained == 3 * 3 * as_adapter(tiny).d_model


def test_the_users_model_asks_for_the_same_gradients_as_before(tiny: Any) -> None:
    asked = [p.requires_grad for p in tiny.parameters()]
    asked_of: dict[str, Any] = QUICK | {"epochs": 1}
    finetune(tiny, SUMS, NEURONS, **asked_of)
    assert [p.requires_grad for p in tiny.parameters()] == asked
    assert all(p.grad is None for p in tiny.parameters())


def obvious(model: Any, neurons: Sequence[tuple[int, int]], lr: float, decay: float) -> Any:
    """The loop anyone would write on a HookedTransformer: gradients masked, decay by hand."""
    model = copy.deepcopy(model)
    masks: dict[str, Tensor] = {}
    for name in ("W_in", "W_gate", "W_out"):
        for layer, index in neurons:
            p = getattr(model.blocks[layer].mlp, name)
            mask = masks.setdefault(f"{layer}.{name}", torch.zeros_like(p))
            (mask[index] if name == "W_out" else mask[:, index]).fill_(1.0)
    trained = {key: getattr(model.blocks[int(key[0])].mlp, key[2:]) for key in masks}
    # Without decay and with a gradient of 0, Adam leaves a number where it is.
    adam = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0)
    rows = encode_examples(as_adapter(model), SUMS, answers=True)
    for epoch in range(3):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), 4):
            loss = torch.zeros(())
            for place in order[start : start + 4]:
                prompt = rows[place].prompt_tokens.tolist()
                answer = list(rows[place].answer_tokens or ())
                logits = model(torch.tensor([[*prompt, *answer[:-1]]]))[0, len(prompt) - 1 :]
                picked = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
                loss = loss - picked.sum() / 4
            grads = torch.autograd.grad(loss, list(trained.values()))
            for (key, p), grad in zip(trained.items(), grads, strict=True):
                p.grad = grad * masks[key]
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            with torch.no_grad():
                for key, p in trained.items():
                    p.sub_(lr * decay * masks[key] * p)
            adam.step()
    return model


def test_it_trains_as_the_obvious_loop_does(tiny_hooked: Any) -> None:
    # Its loss falls, so that the last epoch's weights come back.
    held = [Example(id="h", prompt=SUMS[0].prompt, answer=SUMS[0].answer)]
    asked: dict[str, Any] = QUICK | {"held_out": held, "lr": 0.002, "weight_decay": 0.1}
    found = finetune(tiny_hooked, SUMS, NEURONS, **asked)
    assert found.best["epoch"] == 3
    ours = parameters(found.apply(tiny_hooked))
    theirs = parameters(obvious(tiny_hooked, [(1, 3), (3, 40), (1, 7)], 0.002, 0.1))
    for name, mine in ours.items():
        torch.testing.assert_close(mine, theirs[name], rtol=0, atol=2e-5)


def test_both_libraries_train_the_same_numbers(tiny_hooked: Any, tiny_bridge: Any) -> None:
    one, other = (finetune(m, SUMS, NEURONS, **QUICK) for m in (tiny_hooked, tiny_bridge))
    for name, numbers in one.weights.items():
        torch.testing.assert_close(numbers, other.weights[name], rtol=0, atol=1e-4)
    # Weights of neurons fit either library.
    tokens = torch.arange(9, 15)[None]
    logits = [one.apply(m)(tokens) for m in (tiny_hooked, tiny_bridge)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-3)


def test_a_killed_training_goes_on_with_the_same_numbers(
    tiny_hooked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(tiny_hooked, SUMS, NEURONS, seeds=2, **QUICK)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    folder, real, calls = tmp_path / "kept", masked_training._epoch, []

    def killed(*args: Any) -> Any:
        calls.append(1)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(masked_training, "_epoch", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="goes on there"):
            finetune(tiny_hooked, SUMS, NEURONS, seeds=2, checkpoint=folder, **QUICK)
    resumed = finetune(tiny_hooked, SUMS, NEURONS, seeds=2, checkpoint=folder, **QUICK)
    assert len(calls) == 8  # six epochs and the two that were killed: none is done twice
    assert not folder.exists()
    for one, other in zip(whole, resumed, strict=True):
        assert one.frame().equals(other.frame())
        assert all(torch.equal(t, other.weights[n]) for n, t in one.weights.items())


def test_the_checkpoint_of_other_neurons_is_refused(
    tiny_hooked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    real = masked_training._close_epoch

    def killed(state: Any, *rest: Any) -> None:
        if state.epoch == 1:
            raise KeyboardInterrupt
        real(state, *rest)

    monkeypatch.setattr(masked_training, "_close_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny_hooked, SUMS, NEURONS, checkpoint=tmp_path / "c", **QUICK)
    with pytest.raises(LensSkillsError, match=r"belongs to another pass \(it differs in neurons: "):
        finetune(tiny_hooked, SUMS, ["L0N0"], checkpoint=tmp_path / "c", **QUICK)


def test_a_rate_scales_the_step_of_its_neuron(tiny_hooked: Any) -> None:
    plan = FineTuningPlan(1, 64, 0.01, 0.1, None, 5)  # one step
    moves = []
    for rates in (None, torch.tensor([1.0, 0.25, 0.0])):
        adapter = copied(tiny_hooked)
        rows = encode_examples(adapter, SUMS, answers=True)
        weights = neuron_weights(adapter, torch.tensor([[1, 3], [1, 5], [1, 7]]))
        before = [one.read() for one in weights]
        train(adapter, weights, rows, rows[:1], plan, seed=0, rates=rates)
        moves.append([one.read() - old for one, old in zip(weights, before, strict=True)])
    for full, scaled in zip(*moves, strict=True):
        torch.testing.assert_close(scaled[0], full[0], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(scaled[1], 0.25 * full[1], rtol=1e-2, atol=1e-6)
        assert float(scaled[2].abs().max()) == 0


@pytest.mark.parametrize("kind", ["gpt2", "neox", "gemma2"])
@pytest.mark.parametrize("implementation", ["hooked", "bridge"])
def test_the_entries_are_those_of_the_neurons(
    kind: str, implementation: str, tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    """Changing what is trained changes what these neurons say and write, and no other neuron."""
    if implementation == "hooked":
        request.getfixturevalue("tiny_hooked")  # skips where there is none
        if kind == "gemma2":
            pytest.skip("load_model opens it as a bridge only")
    adapter = copied(build(kind, implementation, tiny_folder))
    tokens = torch.arange(5, 12)[None]

    def neurons_and_output() -> tuple[Tensor, Tensor]:
        seen: dict[str, Tensor] = {}
        names = ("blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out")
        readers = {n: (lambda a, n=n: seen.__setitem__(n, a.detach().clone())) for n in names}
        adapter.forward(tokens, tokens > 0, readers=readers, logits_at=None)
        return seen[names[0]], seen[names[1]]

    before, out_before = neurons_and_output()
    weights = neuron_weights(adapter, torch.tensor([[1, 3], [1, 0]]))
    for one in weights:
        assert torch.equal(one.part_of(one.parameter.detach()), one.read())
        if not one.name.endswith("W_out"):
            one.write(one.read() + 0.5)
    after, _ = neurons_and_output()
    assert set((before != after).nonzero()[:, 2].tolist()) == {0, 3}
    assert any(one.name == "1.b_in" for one in weights) == (kind != "gemma2")
    for one in weights:
        if one.name == "1.W_out":
            rows = adapter.weight_out(1).clone()
            one.write(one.read() + 0.5)
            changed = (adapter.weight_out(1) != rows).any(1).nonzero()[:, 0].tolist()
            assert changed == [0, 3]
    assert not torch.equal(neurons_and_output()[1], out_before)
    assert {one.name.partition(".")[2] for one in weights} <= set(PARTS)


def test_all_parameters_are_trained_where_no_neurons_are_named(tiny: Any) -> None:
    found = finetune(tiny, SUMS, None, **QUICK)
    before, after = parameters(tiny), parameters(found.apply(tiny))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == list(found.weights)
    assert {"embed", "norm", "ln1"} & {p for n in moved for p in n.replace("_", ".").split(".")}
    assert found.units == ()
    assert "every parameter" in repr(found)


def test_a_saved_result_is_applied_after_it_is_read(tiny_hooked: Any, tmp_path: Path) -> None:
    found = finetune(tiny_hooked, SUMS, NEURONS, **QUICK)
    read = ls.load(found.save(tmp_path / "tuned"))
    assert isinstance(read, FineTuned)
    one, other = (parameters(each.apply(tiny_hooked)) for each in (found, read))
    assert all(torch.equal(numbers, other[name]) for name, numbers in one.items())
    with pytest.raises(LensSkillsError, match="another model"):
        read.apply(found.apply(tiny_hooked))


def test_the_best_epoch_comes_back_and_training_stops(tiny_hooked: Any) -> None:
    asked: dict[str, Any] = QUICK | {"epochs": 30, "patience": 2}
    found = finetune(tiny_hooked, SUMS, "all", lr=0.05, **asked)
    losses = found.frame()["held_out_loss"]
    assert losses[1:].idxmin() == found.best["epoch"]
    assert found.stopped.startswith("no lower held-out loss in 2 epochs")
    assert len(losses) == found.best["epoch"] + 3
    rows = encode_examples(as_adapter(tiny_hooked), [*SUMS, *HELD], answers=True)
    own = copied(tiny_hooked)
    plan = FineTuningPlan(30, 4, 0.05, 0.01, 1.0, 2)
    units = torch.tensor([(layer, n) for layer in range(4) for n in range(48)])
    train(own, neuron_weights(own, units), rows[:-1], rows[-1:], plan, seed=0)
    for adapter in (as_adapter(found.apply(tiny_hooked)), own):  # as it is left, too
        batches = masked_training.training_batches(adapter, rows[-1:], 8)
        measured = masked_training.loss_and_accuracy(adapter, batches)[0]
        assert measured == pytest.approx(found.best["held_out_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("neurons", "options", "complaint"),
    [
        ([], {}, "the mask trains nothing"),
        (["L9N0"], {}, "layers 0 to 3"),
        (["L0N99"], {}, "layer 0 has 48 neurons"),
        (["L1H2"], {}, "no MLP neuron"),
        (["L1N2", "L1N2"], {}, "named twice"),
        (NEURONS, {"lr": 0.0}, "learning rate"),
        (NEURONS, {"weight_decay": -1.0}, "weight_decay"),
        (NEURONS, {"epochs": 0}, "epochs=0"),
        (NEURONS, {"seeds": 0}, "seeds=0"),
        (NEURONS, {"clip": 0.0}, "clip=0"),
        (NEURONS, {"held_out": SUMS[:2]}, "both trained on and held out"),
        (NEURONS, {"lr": 9.0, "clip": None, "weight_decay": 0.0}, None),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tiny_hooked: Any, neurons: Any, options: dict[str, Any], complaint: str | None
) -> None:
    if complaint is None:  # a large step is no error of itself: the best epoch comes back
        finetune(tiny_hooked, SUMS, neurons, **QUICK | options)
        return
    with pytest.raises(LensSkillsError, match=complaint):
        finetune(tiny_hooked, SUMS, neurons, **QUICK | options)


def test_neurons_that_no_gradient_reaches_are_refused(tiny_hooked: Any) -> None:
    model = copy.deepcopy(tiny_hooked)
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3] = 0.0  # writes nothing
        model.blocks[1].mlp.W_gate[:, 3] = 0.0  # and says nothing
    with pytest.raises(LensSkillsError, match="no gradient reaches"):
        finetune(model, SUMS, ["L1N3"], **QUICK)


def test_an_example_without_an_answer_is_refused(tiny_hooked: Any) -> None:
    bare = [*SUMS, Example(id="x", prompt="What is")]
    with pytest.raises(LensSkillsError, match="'x' has no answer"):
        finetune(tiny_hooked, bare, NEURONS, **QUICK)
