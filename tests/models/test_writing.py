"""Writing with keys and values kept gives the tokens that reading everything anew gives."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt, as_adapter, load_model, with_soft_prompt
from lens_skills.models.text_writer import (
    BridgeWriter,
    HookedWriter,
    WholeWriter,
    end_tokens,
    writer_for,
)
from tests.conftest import hooks_on
from tests.models.test_suffix import build

N_STEPS = 12


def batch(adapter: Any) -> tuple[Tensor, Tensor]:
    """Three rows of random tokens, padded on the left by 4, 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 400, (3, 9), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, :4] = mask[1, :1] = False
    return tokens.masked_fill(~mask, adapter.pad_id), mask


def write(kind: Any, adapter: Any, tokens: Tensor, mask: Tensor, ends: Any = ()) -> Tensor:
    """Greedy tokens; a row that has ended goes on as -1."""
    writer = kind(adapter, tokens, mask)
    live = torch.ones(len(tokens), dtype=torch.bool)
    rows = []
    for _ in range(N_STEPS):
        chosen = writer.logits.argmax(-1)
        rows.append(chosen.where(live, torch.full_like(chosen, -1)))
        live = live & ~torch.isin(chosen, torch.tensor([*ends], dtype=torch.long))
        writer.add(chosen, live)
    return torch.stack(rows, dim=1)


def soft(adapter: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    suffix = torch.randn(3, adapter.d_model, generator=generator)
    prefix = torch.randn(2, adapter.d_model, generator=generator)
    prompt = SoftPrompt(suffix, prefix, adapter.name, adapter.fingerprint(), False, "random", 1)
    return with_soft_prompt(adapter, prompt)


def test_kept_keys_and_values_give_the_tokens_of_whole_passes(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter)
    kind = writer_for(adapter, tokens, mask)
    assert kind is {"hooked": HookedWriter, "bridge": BridgeWriter}[adapter.implementation]
    found = write(kind, adapter, tokens, mask)
    assert torch.equal(found, write(WholeWriter, adapter, tokens, mask))
    assert len(set(found.flatten().tolist())) > N_STEPS  # it writes, and no row repeats another
    for row in range(3):  # batched = one by one, unpadded
        alone = write(
            kind, adapter, tokens[row : row + 1][:, mask[row]], mask[row : row + 1, mask[row]]
        )
        assert torch.equal(alone[0], found[row])


@pytest.mark.parametrize("kind", ["gpt2", "neox", "window", "gemma2", "bloom"])
@pytest.mark.parametrize("implementation", ["hooked", "bridge"])
def test_other_architectures(
    kind: str, implementation: str, tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    """Learned positions, local windows shorter than the text, capped logits, distances (ALiBi)."""
    if implementation == "hooked":
        request.getfixturevalue("tiny_hooked")  # skips where there is none
        if kind == "gemma2":
            pytest.skip("load_model opens it as a bridge only")
    adapter = as_adapter(build(kind, implementation, tiny_folder))
    tokens, mask = batch(adapter)
    writer = writer_for(adapter, tokens, mask)
    assert writer is not WholeWriter or kind == "bloom"
    found = write(writer, adapter, tokens, mask)
    assert torch.equal(found, write(WholeWriter, adapter, tokens, mask))
    alone = write(writer, adapter, tokens[:1, 4:], mask[:1, 4:])
    assert torch.equal(alone[0], found[0])


def test_it_writes_what_transformers_writes(tiny: Any, tiny_hf: tuple[Any, Any]) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter)
    found = write(writer_for(adapter, tokens, mask), adapter, tokens, mask)
    model, _ = tiny_hf
    wanted = model.generate(
        tokens,
        attention_mask=mask.long(),
        max_new_tokens=N_STEPS,
        min_new_tokens=N_STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(found, wanted[:, 9:])


def test_generate_of_a_bridge_writes_what_transformers_writes(tiny_hf: tuple[Any, Any]) -> None:
    """With transformers 5.24 the bridge loses its cache: load_model has it read whole texts."""
    plain, tokenizer = tiny_hf
    bridge = load_model(plain, tokenizer=tokenizer, implementation="bridge")
    row = batch(as_adapter(bridge))[0][2:]
    found = bridge.generate(
        row, max_new_tokens=N_STEPS, do_sample=False, stop_at_eos=False, return_type="tokens",
        verbose=False,
    )  # fmt: skip
    wanted = plain.generate(
        row, max_new_tokens=N_STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(found, wanted)


def test_a_soft_prompt_is_read_before_the_text(tiny: Any) -> None:
    plain = as_adapter(tiny)
    adapter = soft(plain)
    rows = [
        torch.tensor([1, *adapter.words_before, 20, *more, *adapter.words_after])
        for more in ([21, 22, 23], [24])
    ]
    tokens = torch.full((2, 10), adapter.pad_id)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    for place, row in enumerate(rows):
        tokens[place, 10 - len(row) :], mask[place, 10 - len(row) :] = row, True
    kind = writer_for(adapter, tokens, mask)
    assert kind is not WholeWriter
    found = write(kind, adapter, tokens, mask)
    assert torch.equal(found, write(WholeWriter, adapter, tokens, mask))
    bare = tokens.masked_fill(tokens >= adapter.first_word, adapter.pad_id)
    assert not torch.equal(found, write(kind, plain, bare, mask))


def test_a_row_that_has_ended_does_not_disturb_the_others(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter)
    free = write(writer_for(adapter, tokens, mask), adapter, tokens, mask)
    end = int(free[0, 3])
    ended = write(writer_for(adapter, tokens, mask), adapter, tokens, mask, ends=[end])
    assert ended[0].tolist() == [*free[0, :4].tolist(), *[-1] * (N_STEPS - 4)]
    for row in (1, 2):
        stop = (free[row] == end).nonzero()
        last = int(stop[0]) + 1 if len(stop) else N_STEPS
        assert torch.equal(ended[row, :last], free[row, :last])


def test_logits_equal_those_of_a_whole_pass_at_every_step(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter)
    kept = writer_for(adapter, tokens, mask)(adapter, tokens, mask)
    whole = WholeWriter(adapter, tokens, mask)
    live = torch.tensor([True, True, True])
    for step in range(6):
        live = live & torch.tensor([True, step < 2, True])  # the second row ends on the way
        close = (kept.logits.log_softmax(-1) - whole.logits.log_softmax(-1)).abs()
        assert float(close[live].max()) < 1e-4
        chosen = whole.logits.argmax(-1)
        kept.add(chosen, live)
        whole.add(chosen, live)


def test_the_users_hooks_stay_and_act(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter)
    clean = write(writer_for(adapter, tokens, mask), adapter, tokens, mask)
    widths = []

    def zero(activation: Tensor, hook: Any) -> Tensor:
        widths.append(activation.shape[1])
        return torch.zeros_like(activation)

    point = tiny.hook_dict["blocks.1.mlp.hook_post"]
    point.add_hook(zero)
    try:
        kind = writer_for(adapter, tokens, mask)
        assert widths == []  # a hook that edits is not shown trial passes
        edited = write(kind, adapter, tokens, mask)
        assert widths == [9, *[1] * N_STEPS]
        assert [h.user_hook for h in point.fwd_hooks] == [zero]
    finally:
        for handle in list(point.fwd_hooks):
            handle.hook.remove()
        point.fwd_hooks.clear()
    assert not torch.equal(edited, clean)
    assert hooks_on(tiny) == []


def test_a_hook_at_the_final_norm_acts_too(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter)
    name = next(n for n in ("ln_final.hook_normalized", "unembed.hook_in") if n in tiny.hook_dict)
    point, shapes = tiny.hook_dict[name], []
    point.add_hook(lambda activation, hook: shapes.append(activation.shape[1]))
    try:
        write(writer_for(adapter, tokens, mask), adapter, tokens, mask)
    finally:
        for handle in list(point.fwd_hooks):
            handle.hook.remove()
        point.fwd_hooks.clear()
    assert shapes[0] == 9
    assert len(shapes) == N_STEPS + 1


def test_training_flags_and_gradients_are_as_before(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter)
    tiny.train()
    try:
        writer = writer_for(adapter, tokens, mask)(adapter, tokens, mask)
        assert not writer.logits.requires_grad
        assert tiny.training
    finally:
        tiny.eval()


def test_a_cache_that_lies_is_not_used(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose kept keys give something else is read anew for every token."""
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter)
    kind = writer_for(adapter, tokens, mask)
    honest = kind._read

    def lying(self: Any, tokens: Tensor) -> Tensor:
        return honest(self, tokens) + (
            torch.linspace(0, 1, adapter.d_vocab) if tokens.shape[1] == 1 else 0
        )

    monkeypatch.setattr(kind, "_read", lying)
    assert writer_for(adapter, tokens, mask) is WholeWriter
    monkeypatch.setattr(kind, "_read", lambda self, tokens: self.no_such_cache)
    assert writer_for(adapter, tokens, mask) is WholeWriter


def test_half_precision(tiny_hooked: Any) -> None:
    adapter = as_adapter(copy.deepcopy(tiny_hooked).to(torch.bfloat16))
    tokens, mask = batch(adapter)
    assert writer_for(adapter, tokens, mask) is HookedWriter
    assert HookedWriter(adapter, tokens, mask).logits.dtype == torch.bfloat16


def test_what_ends_a_text(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = as_adapter(tiny)
    assert end_tokens(adapter) == {adapter.eos_id}
    assert end_tokens(adapter.in_chat(True)) == {
        adapter.eos_id
    }  # this template ends turns in a line end
    template = "{% for m in messages %}{{ m['content'] }}<pad>\n{% endfor %}"
    monkeypatch.setattr(adapter.tokenizer, "chat_template", template)
    assert end_tokens(adapter.in_chat(True)) == {adapter.eos_id, adapter.pad_id}


def test_hooks_where_kept_keys_write_something_else_are_refused(tiny_folder: Path) -> None:
    """BLOOM's distances on the bridge: the step was once taken on trust, and wrong."""
    adapter = as_adapter(build("bloom", "bridge", tiny_folder))
    tokens, mask = batch(adapter)
    point = adapter.model.hook_dict["blocks.1.mlp.hook_post"]
    wrong = writer_for(adapter, tokens, mask) is WholeWriter
    point.add_hook(lambda activation, hook: 2 * activation)
    before = list(point.fwd_hooks)
    if wrong:
        with pytest.raises(LensSkillsError, match="cannot write under edits"):
            writer_for(adapter, tokens, mask)
    else:
        assert writer_for(adapter, tokens, mask) is BridgeWriter
    assert list(point.fwd_hooks) == before
    at = torch.full((3, 1), 8)
    doubled = adapter.forward(tokens, mask, readers={}, logits_at=at)
    point.remove_hooks()
    assert not torch.equal(doubled, adapter.forward(tokens, mask, readers={}, logits_at=at))
