"""The suffix: upper blocks on the last columns alone give what the whole model gives."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.models import as_adapter, partial_run
from lens_skills.models.partial_forward import CannotResume, PartialForward, prefill

WIDTH = 9
SIZES: dict[str, Any] = {"vocab_size": 435, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    **SIZES,
}


def batch(adapter: Any) -> tuple[Tensor, Tensor]:
    """Three rows of random tokens, padded on the left by 4, 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 400, (3, WIDTH), generator=generator)
    mask = torch.ones(3, WIDTH, dtype=torch.bool)
    mask[0, :4] = mask[1, :1] = False
    return tokens.masked_fill(~mask, adapter.pad_id), mask


def make(adapter: Any, start: int) -> PartialForward:
    tokens, mask = batch(adapter)
    return prefill(adapter, tokens, mask, start=start, readers={})


def whole(adapter: Any, editors: dict[str, Any]) -> Tensor:
    """Logits of the last column in an ordinary pass."""
    tokens, mask = batch(adapter)
    at = torch.full((3, 1), WIDTH - 1)
    return adapter.forward(tokens, mask, readers={}, logits_at=at, editors=editors)[:, 0]


def resumed(suffix: PartialForward, residual: Tensor, layer: int, **options: Any) -> Tensor:
    return suffix.logits(suffix.run(residual, layer, **options)[:, :, -1])


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    difference = (found.log_softmax(-1) - wanted.log_softmax(-1)).abs().max()
    assert difference <= tolerance, float(difference)


@pytest.mark.parametrize("start", [WIDTH - 1, WIDTH - 3, 0])
def test_each_set_gives_what_an_edited_pass_gives(tiny: Any, start: int) -> None:
    """From every block on, many versions side by side: each as if it were alone."""
    adapter = as_adapter(tiny)
    suffix = make(adapter, start)
    for layer in range(adapter.n_layers):
        clean = suffix.clean(layer, 4)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(layer))
        noise[1] = 0
        out = resumed(suffix, clean + noise, layer)
        for number, pushed in enumerate(noise):

            def push(activation: Tensor, pushed: Tensor = pushed) -> Tensor:
                return torch.cat([activation[:, :start], activation[:, start:] + pushed], dim=1)

            wanted = whole(adapter, {f"blocks.{layer}.hook_resid_pre": push})
            close(out[number], wanted)
    top = resumed(suffix, suffix.clean(adapter.n_layers, 2), adapter.n_layers)
    close(top[1], whole(adapter, {}))


def test_editors_are_given_rows(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    suffix = make(adapter, WIDTH - 2)
    values = torch.randn(2, 3, adapter.d_mlp, generator=torch.Generator().manual_seed(0))

    def put(rows: Tensor) -> Tensor:
        assert rows.shape == (6, 2, adapter.d_mlp)
        return torch.cat([rows[:, :1], values.flatten(0, 1)[:, None]], dim=1)

    out = resumed(suffix, suffix.clean(1, 2), 1, editors={"blocks.2.mlp.hook_post": put})
    for number in range(2):
        wanted = whole(
            adapter,
            {
                "blocks.2.mlp.hook_post": lambda a, number=number: torch.cat(
                    [a[:, :-1], values[number][:, None]], dim=1
                )
            },
        )
        close(out[number], wanted)


@pytest.mark.parametrize("start", [WIDTH - 1, WIDTH - 3, 0])
def test_sets_beyond_one_tree_stand_in_several(
    tiny: Any, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side on the batch axis, with editors, and as many as do not divide evenly."""
    adapter, seen = as_adapter(tiny), []
    suffix = make(adapter, start)
    values = torch.randn(6 * 3, adapter.d_mlp, generator=torch.Generator().manual_seed(0))

    def put(rows: Tensor) -> Tensor:
        assert rows.shape == (len(values), WIDTH - start, adapter.d_mlp)
        return torch.cat([rows[:, :-1], values[:, None]], dim=1)

    editors = {"blocks.2.mlp.hook_post": put}
    noise = torch.randn(suffix.clean(1, 6).shape, generator=torch.Generator().manual_seed(1))
    residual = suffix.clean(1, 6) + noise
    wanted = suffix.run(residual, 1, editors=editors)
    assert suffix._several is None  # one tree was enough
    block, real = type(suffix)._block, suffix.mask[:, start:]  # what is padding may be anything

    def watched(self: Any, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        seen.append(tuple(tree.shape[:2]))
        return block(self, layer, tree, n_sets)

    with monkeypatch.context() as patched:
        patched.setattr(partial_run, "TREE_COLUMNS", 2 * suffix.n_columns)
        patched.setattr(type(suffix), "_block", watched)
        found = suffix.run(residual, 1, editors=editors)
    assert suffix._several is True
    assert seen[-1] == (3 * 3, 2 * suffix.n_columns)  # three trees of two sets, three examples
    torch.testing.assert_close(found[:, real], wanted[:, real], atol=1e-4, rtol=1e-4)
    assert (found[0] - found[5]).abs().max() > 0.1
    monkeypatch.setattr(partial_run, "TREE_COLUMNS", 4 * suffix.n_columns)
    seven = torch.cat([residual, residual[:1]])  # no equal trees of up to four
    assert suffix._n_trees(7) == 7
    found, wanted = suffix.run(seven, 1)[:6], suffix.run(residual, 1)
    torch.testing.assert_close(found[:, real], wanted[:, real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("raises", [False, True])
def test_several_trees_that_come_out_otherwise_are_not_used(
    tiny: Any, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix = make(as_adapter(tiny), WIDTH - 2)
    residual = suffix.clean(0, 4)
    wanted, block = suffix.run(residual, 0), type(suffix)._block

    def wrong(self: Any, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        """A block that mixes the rows of its batch, or knows how many there are."""
        if raises and len(tree) > len(self.mask):
            raise RuntimeError("a shape that does not fit")
        out = block(self, layer, tree, n_sets)
        return out if len(tree) == len(self.mask) else out + 0.1 * out.mean(0)

    monkeypatch.setattr(type(suffix), "_block", wrong)
    monkeypatch.setattr(partial_run, "TREE_COLUMNS", 2)
    torch.testing.assert_close(suffix.run(residual, 0), wanted, atol=1e-5, rtol=1e-5)
    assert suffix._several is False


def test_a_part_of_the_blocks_gives_the_residual_stream_between(tiny: Any) -> None:
    suffix = make(as_adapter(tiny), WIDTH - 1)
    between = suffix.run(suffix.clean(1, 2), 1, stop=3)
    torch.testing.assert_close(between[1], suffix.entering[3], atol=1e-4, rtol=1e-4)


def test_readers_see_the_clean_pass_and_shapes_stay(tiny: Any) -> None:
    adapter, seen = as_adapter(tiny), []
    tokens, mask = batch(adapter)
    readers = {"blocks.2.mlp.hook_post": lambda activation: seen.append(activation.clone())}
    prefill(adapter, tokens, mask, start=WIDTH - 1, readers=readers)
    wanted: list[Tensor] = []
    adapter.forward(tokens, mask, readers={"blocks.2.mlp.hook_post": wanted.append}, logits_at=None)
    (found,) = seen
    torch.testing.assert_close(found[mask], wanted[0][mask], atol=1e-5, rtol=1e-5)


def marks(model: Any) -> list[Any]:
    """What a run could leave behind: hooks, methods on objects, gradients, training flags."""
    return [
        (
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
            part.training,
            {name for name in ("apply_causal_mask", "apply_rotary") if name in part.__dict__},
        )
        for part in model.modules()
    ]


def test_nothing_is_left_on_the_model(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    whole(adapter, {})  # a bridge attaches hooks of its own at its first pass
    before = marks(tiny)
    suffix = make(adapter, WIDTH - 1)
    resumed(suffix, suffix.clean(0, 2), 0)
    assert marks(tiny) == before

    def fail(rows: Tensor) -> Tensor:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        suffix.run(suffix.clean(0, 2), 0, editors={"blocks.2.mlp.hook_post": fail})
    assert marks(tiny) == before


def test_a_users_hook_is_refused(tiny: Any) -> None:
    adapter: Any = as_adapter(tiny)
    point = tiny.hook_dict["blocks.1.hook_resid_pre"]
    point.add_hook(lambda activation, hook: None)
    try:
        with pytest.raises(CannotResume, match="hooks of its user"):
            make(adapter, WIDTH - 1)
    finally:
        tiny.reset_hooks()
    handle = adapter._parts[3].register_forward_hook(lambda *_: None)
    try:
        with pytest.raises(CannotResume, match="hooks of its user"):
            make(adapter, WIDTH - 1)
    finally:
        handle.remove()
    make(adapter, WIDTH - 1)


def architectures() -> dict[str, Callable[[], Any]]:
    """Random models of other kinds: learned positions, parallel blocks, windows, caps, ALiBi."""
    import transformers as hf

    local: dict[str, Any] = {**LLAMA, "head_dim": 8, "sliding_window": 4}
    gemma: dict[str, Any] = {**local, "query_pre_attn_scalar": 8}
    small: dict[str, Any] = {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    neox: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, **small, **SIZES}
    gpt2: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, **SIZES}
    bloom: dict[str, Any] = {"hidden_size": 32, "n_layer": 3, "n_head": 4, **SIZES}
    return {
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2)),
        "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**neox)),
        "window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**local)),
        "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**gemma)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**bloom)),
    }


def build(kind: str, implementation: str, tiny_folder: Path) -> Any:
    import lens_skills as ls

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architectures()[kind]().eval()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    if implementation == "hooked":
        pytest.importorskip("transformer_lens.components")
        from tests.tiny_tokenizer import tiny_tokenizer

        return ls.load_model(model, tokenizer=tiny_tokenizer(), implementation="hooked")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    return TransformerBridge.boot_transformers(
        str(tiny_folder),
        hf_model=copy.deepcopy(model),
        tokenizer=tokenizer,
        device="cpu",
        dtype=torch.float32,
    ).eval()


@pytest.mark.parametrize("kind", ["gpt2", "neox", "window", "gemma2"])
@pytest.mark.parametrize("implementation", ["hooked", "bridge"])
def test_other_architectures(
    kind: str, implementation: str, tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    if implementation == "hooked":
        request.getfixturevalue("tiny_hooked")  # skips where there is none
        if kind == "gemma2":
            pytest.skip("load_model opens it as a bridge only")
    adapter = as_adapter(build(kind, implementation, tiny_folder))
    for start in (WIDTH - 1, 2):
        suffix = make(adapter, start)
        clean = suffix.clean(1, 3)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        out = resumed(suffix, clean + noise, 1)

        def push(activation: Tensor, start: int = start, noise: Tensor = noise) -> Tensor:
            return torch.cat([activation[:, :start], activation[:, start:] + noise[2]], dim=1)

        close(out[2], whole(adapter, {"blocks.1.hook_resid_pre": push}))
        assert suffix._check_several()  # each set in a tree of its own
        several = suffix._run(clean + noise, 1, None, {}, 3)
        close(suffix.logits(several[:, :, -1]), out)


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("fault", ["its pass", "what is kept"])
def test_the_check_sees_every_row(tiny: Any, row: int, fault: str) -> None:
    """An ordinary pass over one row stands for all: a row that runs otherwise later is seen."""
    adapter = as_adapter(tiny)
    suffix, clean = make(adapter, WIDTH - 2), whole(adapter, {})
    suffix.check(clean[[row]], [row])
    if fault == "its pass":
        clean = clean.roll(1, dims=-1)
        tried = row
    else:
        for kept in suffix._kept():
            kept[row] += 1.0
        tried = (row + 1) % 3
    with pytest.raises(CannotResume, match="differ from the whole model"):
        suffix.check(clean[[tried]], [tried])


def test_alibi_is_refused_and_not_silently_wrong(
    tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    """Distances enter its attention scores, which the layout of the branches would stretch."""
    request.getfixturevalue("tiny_hooked")
    adapter = as_adapter(build("bloom", "hooked", tiny_folder))
    with pytest.raises(CannotResume, match="differ from the whole model"):
        make(adapter, WIDTH - 3)
