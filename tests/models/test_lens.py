"""The adapter: what is read is what the model computes, and the model never notices."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter, as_adapter

TEXTS = (
    "The key to the cabinets",
    "What is 3 plus 4? Answer:",
    "The",
    "The boys walk and the girl",
)
SITES = (
    "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post", "hook_mlp_out", "attn.hook_z",
    "hook_attn_out", "hook_resid_pre", "hook_resid_mid", "hook_resid_post",
)  # fmt: skip


def batch(adapter: Any, texts: tuple[str, ...], side: str) -> tuple[Tensor, Tensor]:
    rows = [adapter.encode(text) for text in texts]
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), adapter.pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, ids in enumerate(rows):
        part = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        tokens[row, part] = torch.tensor(ids)
        mask[row, part] = True
    return tokens, mask


class Keep:
    """Readers that keep what they are given."""

    def __init__(self, *names: str) -> None:
        self.seen: dict[str, list[Tensor]] = {name: [] for name in names}

    @property
    def readers(self) -> dict[str, Any]:
        return {name: self._reader(name) for name in self.seen}

    def _reader(self, name: str) -> Any:
        return lambda activation: self.seen[name].append(activation.clone())

    def __getitem__(self, name: str) -> Tensor:
        (only,) = self.seen[name]
        return only


def last(mask: Tensor) -> Tensor:
    positions = torch.arange(mask.shape[1]).expand_as(mask)
    return positions.masked_fill(~mask, -1).amax(1, keepdim=True)


def hook_count(model: Any) -> int:
    points = {id(point): point for point in model.hook_dict.values()}
    own = sum(len(point.fwd_hooks) for point in points.values())
    torch_hooks = sum(len(point._forward_hooks) for point in points.values())
    assert own == torch_hooks
    return own


@pytest.mark.parametrize("side", ["left", "right"])
def test_batched_equals_one_by_one(tiny: Any, side: str) -> None:
    adapter = as_adapter(tiny)
    names = [f"blocks.{layer}.{site}" for layer in (0, adapter.n_layers - 1) for site in SITES]
    tokens, mask = batch(adapter, TEXTS, side)
    together = Keep(*names)
    logits = adapter.forward(tokens, mask, readers=together.readers, logits_at=last(mask))
    assert logits is not None
    for row, text in enumerate(TEXTS):
        ids, ones = batch(adapter, (text,), side)
        alone = Keep(*names)
        wanted = adapter.forward(ids, ones, readers=alone.readers, logits_at=last(ones))
        assert wanted is not None
        torch.testing.assert_close(logits[row], wanted[0], atol=2e-4, rtol=1e-4)
        for name in names:
            torch.testing.assert_close(
                together[name][row][mask[row]], alone[name][0], atol=2e-4, rtol=1e-4, msg=name
            )


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_the_plain_hugging_face_forward(tiny: Any, tiny_hf: Any, side: str) -> None:
    adapter, plain = as_adapter(tiny), tiny_hf[0]
    tokens, mask = batch(adapter, TEXTS, side)
    at = torch.stack([mask.long().argmax(1), last(mask)[:, 0]], dim=1)
    logits = adapter.forward(tokens, mask, readers={}, logits_at=at)
    assert logits is not None
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([adapter.encode(text)])
        with torch.no_grad():
            wanted = plain(ids).logits[0, [0, -1]]
        torch.testing.assert_close(
            logits[row].log_softmax(-1), wanted.log_softmax(-1), atol=1e-4, rtol=0
        )


def test_logits_equal_the_models_own_forward(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter, TEXTS[:1], "left")
    at = torch.tensor([[3, 0, 3]])
    logits = adapter.forward(tokens, mask, readers={}, logits_at=at)
    with torch.no_grad():
        wanted = tiny(tokens)[:, [3, 0, 3]]
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)


def test_sites_are_the_quantities_their_names_say(tiny: Any, tiny_hf: Any) -> None:
    """Against forward hooks on the plain Hugging Face modules."""
    adapter, plain = as_adapter(tiny), tiny_hf[0]
    layer = 2
    block = plain.model.layers[layer]
    wanted: dict[str, Tensor] = {}

    def output(name: str) -> Any:
        return lambda module, args, out: wanted.__setitem__(name, out)

    def first_input(name: str) -> Any:
        return lambda module, args: wanted.__setitem__(name, args[0])

    handles = [
        block.mlp.gate_proj.register_forward_hook(output("mlp.hook_pre")),
        block.mlp.up_proj.register_forward_hook(output("mlp.hook_pre_linear")),
        block.mlp.down_proj.register_forward_pre_hook(first_input("mlp.hook_post")),
        block.mlp.register_forward_hook(output("hook_mlp_out")),
        block.self_attn.o_proj.register_forward_pre_hook(first_input("attn.hook_z")),
        block.register_forward_pre_hook(first_input("hook_resid_pre")),
    ]
    tokens, mask = batch(adapter, TEXTS[:1], "left")
    try:
        with torch.no_grad():
            plain(tokens)
    finally:
        for handle in handles:
            handle.remove()
    found = Keep(*(f"blocks.{layer}.{site}" for site in wanted))
    assert adapter.forward(tokens, mask, readers=found.readers, logits_at=None) is None
    z = found[f"blocks.{layer}.attn.hook_z"]
    assert z.shape == (1, tokens.shape[1], adapter.n_heads, adapter.d_head)
    for site, value in wanted.items():
        read = found[f"blocks.{layer}.{site}"]
        torch.testing.assert_close(read.reshape(value.shape), value, atol=1e-4, rtol=1e-4, msg=site)


def test_reading_stops_after_the_last_layer_needed(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter, TEXTS[:2], "left")
    reached: list[int] = []
    points = [tiny.hook_dict[f"blocks.{layer}.hook_resid_pre"] for layer in range(adapter.n_layers)]
    points.append(tiny.hook_dict["ln_final.hook_normalized"])
    for layer, point in enumerate(points):
        point.add_hook(lambda activation, hook, layer=layer: reached.append(layer))
    try:
        for top in (0, 1, adapter.n_layers - 1):
            reached.clear()
            found = Keep(f"blocks.{top}.hook_resid_post")
            assert adapter.forward(tokens, mask, readers=found.readers, logits_at=None) is None
            assert reached == list(range(top + 1))
        reached.clear()
        assert adapter.forward(tokens, mask, readers={}, logits_at=None) is None
        assert reached == []
    finally:
        tiny.reset_hooks()


def test_only_the_positions_asked_for_reach_the_vocabulary(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter, TEXTS, "left")
    projection = tiny.unembed
    rows: list[int] = []
    handle = projection.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    try:
        at = torch.full((len(TEXTS), 1), tokens.shape[1] - 1)
        adapter.forward(tokens, mask, readers={}, logits_at=at)
        assert rows == [1]
        rows.clear()
        found = Keep("blocks.3.hook_resid_post")
        adapter.forward(tokens, mask, readers=found.readers, logits_at=None)
        assert rows == []
    finally:
        handle.remove()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_error_and_the_users_own_still_fire(
    tiny: Any, error: type[BaseException]
) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter, TEXTS[:2], "left")
    fired: list[str] = []
    name = "blocks.1.mlp.hook_post"
    tiny.hook_dict[name].add_hook(lambda activation, hook: fired.append("user"))

    def fails(activation: Tensor) -> None:
        raise error("in a reader")

    try:
        with pytest.raises(error, match="in a reader"):
            adapter.forward(tokens, mask, readers={name: fails}, logits_at=None)
        assert hook_count(tiny) == 1
        fired.clear()
        tiny(tokens)
        assert fired == ["user"]
        adapter.forward(tokens, mask, readers=Keep(name).readers, logits_at=last(mask))
        assert fired == ["user", "user"]
        assert hook_count(tiny) == 1
    finally:
        tiny.reset_hooks()
    assert hook_count(tiny) == 0


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale/hook_normalized")
@pytest.mark.parametrize(
    "name", ["blocks.0.mlp.hook_post", "ln_final.hook_normalized", "unembed.hook_in"]
)
def test_readers_and_logits_see_the_users_own_interventions(tiny: Any, name: str) -> None:
    """A hook that indexes positions must get all of them, also on the final norm."""
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter, TEXTS[:1], "left")
    width = tokens.shape[1]

    def edit(activation: Tensor, hook: Any) -> Tensor:
        assert activation.shape[1] == width
        edited = activation.clone()
        edited[:, -1] = 0
        return edited

    tiny.hook_dict[name].add_hook(edit)
    try:
        found = Keep(name)
        logits = adapter.forward(tokens, mask, readers=found.readers, logits_at=last(mask))
        unread = adapter.forward(tokens, mask, readers={}, logits_at=last(mask))
        with torch.no_grad():
            wanted = tiny(tokens)[:, -1:]
    finally:
        tiny.reset_hooks()
    assert not found[name][:, -1].any()
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unread, wanted, atol=1e-5, rtol=1e-5)


def test_modes_and_gradients_are_as_they_were(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter, TEXTS[:1], "left")
    tiny.train()
    try:
        before = [module.training for module in tiny.modules()]
        logits = adapter.forward(tokens, mask, readers={}, logits_at=last(mask))
        assert [module.training for module in tiny.modules()] == before
        assert tiny.training
        assert torch.is_grad_enabled()
        assert logits is not None
        assert not logits.requires_grad
        assert not logits.is_inference()
    finally:
        tiny.eval()


def test_encode_is_to_tokens(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    for text in (*TEXTS, " leading", "trailing ", "déjà vu 12"):
        assert adapter.encode(text) == tiny.to_tokens(text)[0].tolist()
        assert adapter.encode(text)[0] == adapter.bos_id
        assert adapter.encode_plain(text) == adapter.encode(text)[1:]
        assert "".join(map(adapter.decode, adapter.encode_plain(text))) == text or "é" in text
    long = "The keys " * 400
    assert len(adapter.encode(long)) > adapter.n_ctx


def test_chat_renders_the_template_once(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    ids = adapter.in_chat(True).encode("What is 3 plus 4?")
    assert [place for place, token in enumerate(ids) if token == adapter.bos_id] == [0]
    assert "".join(map(adapter.decode, ids[1:])) == "user: What is 3 plus 4?\nassistant: "


def test_chat_without_a_template_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.tokenizer, "chat_template", None)
    with pytest.raises(LensSkillsError, match="no chat template"):
        as_adapter(tiny).in_chat(True)


def test_sizes(tiny: Any, tiny_hf: Any) -> None:
    adapter = as_adapter(tiny)
    config = tiny_hf[0].config
    assert isinstance(adapter, ModelAdapter)
    assert as_adapter(adapter) is adapter
    assert adapter.model is tiny
    assert adapter.n_layers == config.num_hidden_layers
    assert adapter.n_heads == config.num_attention_heads
    assert adapter.d_head == config.hidden_size // config.num_attention_heads
    assert adapter.d_model == config.hidden_size
    assert adapter.d_mlp == config.intermediate_size
    assert adapter.d_vocab == config.vocab_size
    assert adapter.n_ctx == config.max_position_embeddings
    assert adapter.gated
    assert adapter.dtype == torch.float32
    assert adapter.pad_id == tiny_hf[1].pad_token_id
    assert "blocks.0.mlp.hook_post" in adapter.hook_names()


def test_weights_out_and_unembedding(tiny: Any, tiny_hf: Any) -> None:
    adapter, plain = as_adapter(tiny), tiny_hf[0]
    for layer in range(adapter.n_layers):
        wanted = plain.model.layers[layer].mlp.down_proj.weight.T
        torch.testing.assert_close(adapter.weight_out(layer), wanted.detach())
    assert adapter.weight_out(1).data_ptr() == adapter.weight_out(1).data_ptr()
    weight, bias = adapter.unembed_vectors()
    torch.testing.assert_close(weight, plain.lm_head.weight.T.detach())
    assert bias is None or not bias.any()


def test_fingerprint_tells_edits_apart(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    first = adapter.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert as_adapter(tiny).fingerprint() == first
    with torch.no_grad():
        weight = adapter.weight_out(1)
        kept = weight.clone()
        weight[3, 4] += 1e-3
        assert adapter.fingerprint() != first
        weight.copy_(kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))])
        assert adapter.fingerprint() != first
        weight.copy_(kept)
    assert adapter.fingerprint() == first
    holder = tiny if adapter.implementation == "hooked" else tiny.original_model
    query = next(p for name, p in holder.named_parameters() if re.search("W_Q|q_proj", name))
    with torch.no_grad():
        kept = query.clone()
        query[0, 0] += 1e-3
        assert adapter.fingerprint() != first
        query.copy_(kept)
    assert adapter.fingerprint() == first


def test_fingerprint_sees_a_token_added_since(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    monkeypatch.setattr(tiny, "tokenizer", tokenizer)
    first = as_adapter(tiny).fingerprint()
    assert as_adapter(tiny).fingerprint() == first
    tokenizer.add_tokens(["<one more>"])
    assert as_adapter(tiny).fingerprint() != first


def test_fingerprint_is_the_same_on_both_implementations(
    tiny_hooked: Any, tiny_bridge: Any
) -> None:
    assert as_adapter(tiny_hooked).fingerprint() == as_adapter(tiny_bridge).fingerprint()


def test_a_processed_hooked_transformer_is_read_too(tiny_hooked: Any) -> None:
    processed = copy.deepcopy(tiny_hooked)
    processed.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    adapter, raw = as_adapter(processed), as_adapter(tiny_hooked)
    tokens, mask = batch(adapter, TEXTS, "left")
    name = "blocks.3.mlp.hook_post"
    one, other = Keep(name), Keep(name)
    mine = adapter.forward(tokens, mask, readers=one.readers, logits_at=last(mask))
    wanted = raw.forward(tokens, mask, readers=other.readers, logits_at=last(mask))
    assert mine is not None
    assert wanted is not None
    torch.testing.assert_close(one[name][mask], other[name][mask], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.log_softmax(-1), wanted.log_softmax(-1), atol=1e-4, rtol=0)


def test_a_bridge_in_compatibility_mode_is_read_too(tiny_bridge: Any) -> None:
    processed = copy.deepcopy(tiny_bridge)
    processed.enable_compatibility_mode()
    adapter, raw = as_adapter(processed), as_adapter(tiny_bridge)
    tokens, mask = batch(adapter, TEXTS, "left")
    name = "blocks.3.mlp.hook_post"
    one, other = Keep(name), Keep(name)
    mine = adapter.forward(tokens, mask, readers=one.readers, logits_at=last(mask))
    wanted = raw.forward(tokens, mask, readers=other.readers, logits_at=last(mask))
    assert mine is not None
    assert wanted is not None
    torch.testing.assert_close(one[name][mask], other[name][mask], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.log_softmax(-1), wanted.log_softmax(-1), atol=1e-4, rtol=0)
    assert adapter.fingerprint() != raw.fingerprint()


def test_unknown_and_unreached_hook_points(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter, TEXTS[:1], "left")
    with pytest.raises(LensSkillsError, match=r"Did you mean 'blocks\.0\.mlp\.hook_post'"):
        adapter.forward(tokens, mask, readers=Keep("blocks.0.mlp.hook_pst").readers, logits_at=None)
    with pytest.raises(LensSkillsError, match="never reached"):
        adapter.forward(
            tokens, mask, readers=Keep("blocks.0.attn.hook_result").readers, logits_at=None
        )
    assert hook_count(tiny) == 0


def test_batches_that_do_not_fit_are_refused(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tokens, mask = batch(adapter, TEXTS[:2], "left")
    with pytest.raises(LensSkillsError, match="all padding"):
        adapter.forward(tokens, mask & False, readers={}, logits_at=last(mask))
    with pytest.raises(LensSkillsError, match="does not fit"):
        adapter.forward(tokens, mask, readers={}, logits_at=last(mask) + 99)
    with pytest.raises(LensSkillsError, match="counted from 0"):
        adapter.forward(tokens, mask, readers={}, logits_at=last(mask) - 99)


@pytest.mark.parametrize("thing", ["gpt2", None, 3, torch.nn.Linear(2, 2)])
def test_only_models_have_an_adapter(thing: Any) -> None:
    with pytest.raises(LensSkillsError, match="load_model"):
        as_adapter(thing)


def test_a_model_without_tokenizer_or_mlp_is_read_by_token(tiny_hooked: Any) -> None:
    from transformer_lens import HookedTransformer

    config = {"n_layers": 2, "d_model": 16, "n_ctx": 8, "d_head": 4, "n_heads": 4, "d_vocab": 9}
    with pytest.warns(DeprecationWarning, match="HookedTransformer is deprecated"):
        model = HookedTransformer({**config, "attn_only": True, "seed": 0})
    adapter = as_adapter(model)
    tokens = torch.tensor([[1, 2, 3]])
    logits = adapter.forward(tokens, tokens > 0, readers={}, logits_at=torch.tensor([[2]]))
    torch.testing.assert_close(logits, model(tokens)[:, 2:].detach())
    assert (adapter.d_mlp, adapter.gated, adapter.pad_id, adapter.bos_id) == (0, False, 0, None)
    assert len(adapter.fingerprint()) == 64
    with pytest.raises(LensSkillsError, match="no single MLP output matrix"):
        adapter.weight_out(0)
    with pytest.raises(LensSkillsError, match="has no tokenizer"):
        adapter.encode("hello")


def test_decode_keeps_the_leading_space_of_sentencepiece(tiny: Any) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"\u2581the": 0, "\u2581key": 1, "s": 2}, unk_token="s"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    adapter = copy.copy(as_adapter(tiny))
    adapter.tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)  # type: ignore[misc]
    assert [adapter.decode(token) for token in range(3)] == [" the", " key", "s"]
