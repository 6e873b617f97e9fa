"""Training gives what an obvious loop gives, faster, and leaves the model as it was."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.activations import evaluate
from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt, as_adapter, with_soft_prompt
from lens_skills.models.partial_forward import prefill
from lens_skills.settings import config
from lens_skills.soft_prompts import fit_prompt, initial_prompt
from lens_skills.soft_prompts.training_batches import TrainingBatch, TrainingPasses, whole_losses
from tests.models.conftest import IMPLEMENTATIONS
from tests.models.test_suffix import build

# Inputs and answers of several lengths: every batch is padded, and soft columns differ by row.
SUMS = [
    Example(
        id=f"{lead}{a}+{b}",
        prompt=f"{lead}What is {a} plus {b}?\nA: ",
        answer=str(a + b),
        foil=str(a + b + 1),
        group=f"{a}+{b}",
    )
    for lead, a, b in (("", 2, 3), ("The keys: ", 4, 9), ("The keys: ", 3, 3), ("", 8, 8))
]
PLAIN: dict[str, Any] = {"batch_size": 64}
SUMS_LIKE = [Example(id="h", prompt="What is 1 plus 1?\nA: ", answer="2")]


def alike(model: Any) -> list[Example]:
    """Without padding for the bridge, whose attention gives NaN there in float64 (torch, CPU)."""
    if as_adapter(model).implementation == "hooked":
        return SUMS
    return [replace(e, prompt=SUMS[0].prompt.replace("2", str(n)), answer="8", foil=None)
            for n, e in enumerate(SUMS[:3], 4)]  # fmt: skip


def double(model: Any) -> Any:
    """A copy of the model in float64."""
    model = copy.deepcopy(model).double()
    for part in model.modules():
        if hasattr(getattr(part, "cfg", None), "dtype"):
            part.cfg.dtype = torch.float64
    return model


@pytest.fixture
def exact(tiny: Any) -> Any:
    """The tiny model in float64, of each implementation."""
    return double(tiny)


Whole = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_transformers(hf: Any) -> Whole:
    """Logits of one row, through transformers' own modules."""
    embed = hf.get_input_embeddings()

    def run(before: Tensor, vectors: Tensor, after: Tensor) -> Tensor:
        whole = torch.cat([embed(before).detach(), vectors, embed(after).detach()])
        return hf(inputs_embeds=whole[None]).logits[0]

    return run


def by_hook(model: Any) -> Whole:
    """Logits of one row, as a user of TransformerLens would get them."""

    def run(before: Tensor, vectors: Tensor, after: Tensor) -> Tensor:
        n_before, n_soft = len(before), len(vectors)

        def put(embedded: Tensor, hook: Any) -> Tensor:
            parts = embedded[0, :n_before], vectors, embedded[0, n_before + n_soft :]
            return torch.cat(parts)[None]

        tokens = torch.cat([before, torch.zeros(n_soft, dtype=torch.long), after])
        return model.run_with_hooks(tokens[None], fwd_hooks=[("hook_embed", put)])[0]

    return run


def obvious(
    run: Whole, adapter: Any, examples: list[Example], start: Tensor, *, n_steps: int, lr: float
) -> list[float]:
    """The loop anyone would write: one row at a time, all of it at each step."""
    rows = encode_examples(adapter, examples, answers=True)
    vectors = start.clone().requires_grad_()
    adam = torch.optim.Adam([vectors], lr=lr)
    losses = []
    for _ in range(n_steps):
        total = torch.zeros((), dtype=vectors.dtype)
        for row in rows:
            answer = torch.tensor(row.answer_tokens)
            before = torch.tensor(row.prompt_tokens.astype("int64"))
            logits = run(before, vectors, answer[:-1])[len(before) + len(vectors) - 1 :]
            total = total - logits.log_softmax(-1).gather(-1, answer[:, None]).sum()
        loss = total / len(rows)
        (vectors.grad,) = torch.autograd.grad(loss, [vectors])
        torch.nn.utils.clip_grad_norm_([vectors], 1.0)
        adam.step()
        losses.append(float(loss.detach()))
    return losses


def train_losses(model: Any, examples: list[Example], **options: Any) -> tuple[list[float], Any]:
    options = {"held_out": SUMS_LIKE, "patience": 99, **PLAIN, **options}
    prompt = fit_prompt(model, examples, **options)
    return [row["train_loss"] for row in prompt.curve[1:]], prompt


def test_as_an_obvious_loop(tiny: Any, tiny_hf: Any) -> None:
    found, prompt = train_losses(tiny, SUMS, epochs=20, n_tokens=3, lr=0.02, seed=1)
    assert prompt.provenance["passes"] == "from the prompt on"
    start = initial_prompt(tiny, 3, seed=1).suffix
    run = by_transformers(tiny_hf[0])
    wanted = obvious(run, as_adapter(tiny), SUMS, start, n_steps=20, lr=0.02)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert wanted[-1] < wanted[0] - 0.5, "nothing was learned"


def test_as_an_obvious_loop_to_the_last_digits(exact: Any) -> None:
    found, prompt = train_losses(exact, alike(exact), epochs=20, n_tokens=3, lr=0.02)
    assert prompt.suffix.dtype == torch.float64
    start = initial_prompt(exact, 3).suffix
    wanted = obvious(by_hook(exact), as_adapter(exact), alike(exact), start, n_steps=20, lr=0.02)
    assert found == pytest.approx(wanted, abs=1e-9)


def test_learned_positions(tiny_folder: Path) -> None:
    """A GPT-2 adds a position embedding to the vectors as to any token."""
    for implementation in IMPLEMENTATIONS:
        model = build("gpt2", implementation, tiny_folder)
        found, prompt = train_losses(model, SUMS, epochs=4, n_tokens=3, lr=0.02)
        assert prompt.provenance["passes"] == "from the prompt on"
        start = initial_prompt(model, 3).suffix
        wanted = obvious(by_hook(model), as_adapter(model), SUMS, start, n_steps=4, lr=0.02)
        assert found == pytest.approx(wanted, abs=1e-4)


def test_vectors_before_the_input_are_trained_along(tiny: Any) -> None:
    _, prompt = train_losses(tiny, SUMS, epochs=3, n_tokens=2, n_prefix=2, lr=0.02)
    assert prompt.provenance["passes"].startswith("whole")
    start = initial_prompt(tiny, 2, n_prefix=2)
    assert not torch.equal(prompt.prefix, start.prefix)
    # The loss it reports is that of the verb everyone else uses.
    assert prompt.curve[0]["train_loss"] == pytest.approx(mean_loss(tiny, SUMS, start), abs=1e-4)
    _, before_only = train_losses(tiny, SUMS, epochs=2, n_tokens=0, n_prefix=2)
    assert before_only.suffix.shape == (0, 32)


def mean_loss(model: Any, examples: list[Example], prompt: SoftPrompt) -> float:
    found = evaluate(model, examples, "answer_probability", prompt=prompt)
    return float(-found["answer_probability"].log().mean())


def prepared(model: Any, examples: list[Example]) -> tuple[Any, SoftPrompt, Any]:
    prompt = initial_prompt(model, 3)
    return (
        as_adapter(model),
        prompt,
        encode_examples(with_soft_prompt(model, prompt), examples, answers=True),
    )


def slopes(adapter: Any, batch: TrainingBatch, prompt: SoftPrompt, whole: bool) -> Tensor:
    live = replace(prompt, suffix=prompt.suffix.clone().requires_grad_())
    passes = TrainingPasses(adapter, live, 100)
    losses = whole_losses(adapter, batch, live) if whole else passes.losses(batch, live)
    assert whole or passes.whole is None
    return torch.autograd.grad(losses[0].sum(), live.suffix)[0]


def test_batched_is_one_by_one_and_fast_is_whole(exact: Any) -> None:
    """Rows of four lengths, answers of two: losses' slopes to the last digits of float64."""
    adapter, prompt, encoded = prepared(exact, alike(exact))
    spoken = with_soft_prompt(exact, prompt)
    alone = sum(slopes(adapter, TrainingBatch.of(spoken, [e]), prompt, False) for e in encoded)
    batch = TrainingBatch.of(spoken, encoded)
    assert batch.ragged or adapter.implementation == "bridge"
    for whole in (False, True):
        found = slopes(adapter, batch, prompt, whole)
        torch.testing.assert_close(found, alone, atol=1e-9, rtol=1e-9)
    assert float(found.abs().max()) > 1e-3


def test_the_model_is_left_bit_for_bit(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    parameters = dict(tiny.named_parameters())
    frozen = next(iter(parameters))
    parameters[frozen].requires_grad_(False)
    before = {name: part.detach().clone() for name, part in parameters.items()}
    flags = {name: part.requires_grad for name, part in parameters.items()}
    training = [part.training for part in tiny.modules()]
    print_before = adapter.fingerprint()
    try:
        for n_prefix in (0, 1):
            train_losses(tiny, SUMS[:2], epochs=2, n_tokens=2, n_prefix=n_prefix)
        assert adapter.fingerprint() == print_before
        for name, part in tiny.named_parameters():
            assert torch.equal(part, before[name]), name
            assert part.requires_grad == flags[name], name
            assert part.grad is None, name
        assert [part.training for part in tiny.modules()] == training
        assert torch.is_grad_enabled()
    finally:
        parameters[frozen].requires_grad_(True)


def test_a_small_budget_changes_nothing(tiny: Any) -> None:
    kept, prompt = train_losses(tiny, SUMS, epochs=3, n_tokens=2, batch_size=2)
    with config(memory_mb=0):
        anew, other = train_losses(tiny, SUMS, epochs=3, n_tokens=2, batch_size=2)
    assert kept == anew
    assert prompt.digest == other.digest
    assert prompt.provenance["kept_mb"] > 0
    assert other.provenance["kept_mb"] == 0


def test_seeds_are_prompts_of_their_own(tiny: Any) -> None:
    options: dict[str, Any] = {"n_tokens": 2, "epochs": 2, "held_out": 0.25, **PLAIN}
    first, second = fit_prompt(tiny, SUMS, seeds=2, seed=5, **options)
    assert (first.seed, second.seed) == (5, 6)
    assert first.digest != second.digest
    assert fit_prompt(tiny, SUMS, seed=6, **options).digest == second.digest
    assert first.trained
    # Held out by group, and neither part may be scored later.
    for prompt in (first, second):
        held = set(prompt.provenance["held_out_ids"])
        assert len(held) == 1
        assert set(prompt.provenance["example_ids"]) == {e.id for e in SUMS}
        assert set(prompt.provenance["groups"]) == {e.group for e in SUMS}


def test_the_best_on_held_out_examples_comes_back(tiny: Any) -> None:
    """Steps of size 0 from the third on: the third epoch is the best, and patience runs out."""
    held = [Example(id="h", prompt="The keys: What is 9 plus 1?\nA: ", answer="10")]
    prompt = fit_prompt(
        tiny, SUMS, n_tokens=2, epochs=12, patience=3, held_out=held, seed=2, lr=0.02,
        schedule=lambda step: float(step < 3), **PLAIN,
    )  # fmt: skip
    curve = prompt.frame()
    assert curve["epoch"].tolist() == list(range(7))
    assert curve["step"].tolist() == list(range(7))
    assert "no lower held-out loss in 3 epochs" in prompt.provenance["stopped"]
    best = curve["held_out_loss"].min()
    assert best == curve["held_out_loss"][3]
    assert best < curve["held_out_loss"][2]
    assert mean_loss(tiny, held, prompt) == pytest.approx(best, abs=1e-4)


def test_what_comes_back_is_not_the_last(tiny: Any) -> None:
    """Training for one answer makes another less likely: the first epoch is the best."""
    held = [replace(SUMS[0], id="h", group="h", answer="7")]
    prompt = fit_prompt(
        tiny, SUMS[:1], n_tokens=3, epochs=6, patience=6, held_out=held, lr=0.05, **PLAIN
    )
    losses = prompt.frame()["held_out_loss"]
    assert losses.iloc[-1] > losses[1:].min() + 0.01
    assert mean_loss(tiny, held, prompt) == pytest.approx(losses[1:].min(), abs=1e-4)


def test_divergence_keeps_the_last_good_prompt(tiny: Any) -> None:
    def explode_after(steps: int) -> Callable[[int], float]:
        return lambda step: 1.0 if step < steps else math.inf

    options: dict[str, Any] = {"n_tokens": 2, "held_out": 0.25, "epochs": 6, **PLAIN}
    with pytest.warns(RuntimeWarning, match="ended early"):
        prompt = fit_prompt(tiny, SUMS, schedule=explode_after(3), patience=9, **options)
    assert "step 4" in prompt.provenance["stopped"]
    assert bool(prompt.suffix.isfinite().all())
    assert len(prompt.curve) == 4
    good = fit_prompt(tiny, SUMS, **{**options, "epochs": 3}, patience=9)
    assert prompt.digest == good.digest
    with pytest.raises(LensSkillsError, match=r"before the first epoch.*step 1\b"):
        fit_prompt(tiny, SUMS, schedule=explode_after(0), **options)
    with pytest.raises(LensSkillsError, match=r"the (loss|gradient's size) is nan at step 2\b"):
        fit_prompt(tiny, SUMS, schedule=explode_after(0), **{**options, "batch_size": 2})


def test_schedules_and_clipping(tiny: Any) -> None:
    """Adam's first step moves every number by the learning rate, whatever the gradient."""
    start = initial_prompt(tiny, 2).suffix
    for schedule, wanted in (("constant", 0.02), ("linear", 0.01), ("cosine", 0.01)):
        moved = []
        for epochs in (1, 2):
            _, prompt = train_losses(
                tiny, SUMS, n_tokens=2, lr=0.01, epochs=epochs, schedule=schedule, patience=99,
                held_out=SUMS_LIKE,
            )  # fmt: skip
            moved.append(float((prompt.suffix - start).abs().max()))
        assert moved[0] == pytest.approx(0.01, rel=1e-3)
        assert moved[1] <= 0.01 + wanted * 0.51
    with pytest.raises(LensSkillsError, match="no schedule 'step'"):
        fit_prompt(tiny, SUMS, schedule="step", **PLAIN)


def test_a_scaled_embedding_is_run_whole(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What some models do to every embedding must not be left out of the fast way."""
    adapter, prompt, encoded = prepared(tiny, SUMS)
    batch = TrainingBatch.of(with_soft_prompt(tiny, prompt), encoded)
    passes = TrainingPasses(adapter, prompt, 100)
    with torch.no_grad():
        wanted, _ = whole_losses(adapter, batch, prompt)
        real = prefill

        def off(*args: Any, **options: Any) -> Any:
            suffix = real(*args, **options)
            suffix.entering[0] = suffix.entering[0] * 1.5
            return suffix

        monkeypatch.setattr("lens_skills.soft_prompts.training_batches.prefill", off)
        found, _ = passes.losses(batch, prompt)
    assert passes.whole is not None
    assert "differs from the whole model" in passes.whole
    assert torch.equal(found, wanted)


def test_an_ending_is_learned_with_the_answer(tiny: Any) -> None:
    plain, _ = train_losses(tiny, SUMS, epochs=1, n_tokens=2)
    ended, prompt = train_losses(tiny, SUMS, epochs=1, n_tokens=2, ending="\n")
    longer = [replace(e, answer=f"{e.answer}\n") for e in SUMS]
    assert ended[0] == pytest.approx(mean_loss(tiny, longer, initial_prompt(tiny, 2)), abs=1e-4)
    assert ended[0] > plain[0]
    assert prompt.provenance["settings"]["ending"] == "\n"


def test_beginnings(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    table = (
        tiny.original_model.get_input_embeddings().weight
        if hasattr(tiny, "original_model") else tiny.W_E
    ).detach()  # fmt: skip
    words = initial_prompt(tiny, 6, seed=3).suffix
    assert all(bool((table == row).all(-1).any()) for row in words)
    assert not torch.equal(words, initial_prompt(tiny, 6, seed=4).suffix)
    ids = adapter.encode_plain(" yes or no")
    text = initial_prompt(tiny, 2 * len(ids), text=" yes or no", n_prefix=1)
    assert torch.equal(text.suffix, table[ids + ids])
    assert torch.equal(text.prefix, table[ids[:1]])
    normal = initial_prompt(tiny, 200, init="normal").suffix
    assert float(normal.std()) == pytest.approx(float(table.std()), rel=0.1)
    assert float(initial_prompt(tiny, 200, init=1 / 30).suffix.std()) == pytest.approx(
        1 / 30, rel=0.05
    )
    assert not text.trained
    for wrong in ({"init": "zeros"}, {"n_tokens": 0}, {"n_tokens": -1}, {"text": ""}):
        with pytest.raises(LensSkillsError):
            initial_prompt(tiny, **wrong)
    with pytest.raises(LensSkillsError, match="leave no room"):
        initial_prompt(tiny, adapter.n_ctx)


def test_bad_input(tiny: Any) -> None:
    bare = Example(id="bare", prompt="What is 3")
    with pytest.raises(LensSkillsError, match="'bare' has no answer"):
        fit_prompt(tiny, [*SUMS, bare], **PLAIN)
    with pytest.raises(LensSkillsError, match="of them the soft prompt's"):
        fit_prompt(tiny, SUMS, n_tokens=as_adapter(tiny).n_ctx - 3, **PLAIN)
    with pytest.raises(LensSkillsError, match="held_out=0"):
        fit_prompt(tiny, SUMS, held_out=0, **PLAIN)
    with pytest.raises(LensSkillsError, match="both trained on and held out"):
        fit_prompt(tiny, SUMS, held_out=SUMS[:1], **PLAIN)
    with pytest.raises(LensSkillsError, match="already"):
        fit_prompt(with_soft_prompt(tiny, initial_prompt(tiny, 2)), SUMS, **PLAIN)
    for name in ("seeds", "epochs", "batch_size"):
        with pytest.raises(LensSkillsError, match=f"{name}=0"):
            fit_prompt(tiny, SUMS, **{**PLAIN, name: 0})
    for name, wrong in (("lr", 0), ("lr", -1), ("lr", math.nan), ("lr", 1e38), ("clip", -1.0)):
        with pytest.raises(LensSkillsError, match=re.escape(f"{name}={wrong}: a positive number")):
            fit_prompt(tiny, SUMS, **{**PLAIN, name: wrong})
