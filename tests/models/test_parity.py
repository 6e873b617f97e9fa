"""Parity of everything that is opened: what fails it is refused, or opened the other way."""

import copy
import warnings
from typing import Any

import pytest
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter, conversion, huggingface, load_model, parity
from tests.models.conftest import IMPLEMENTATIONS, needs_hooked, same_as

GATED: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 32, "intermediate_size": 52, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def make(kind: str, **options: Any) -> Any:
    """A tiny random model of an architecture, by its class's name."""
    import transformers

    stem = kind.removesuffix("ForCausalLM")
    config = getattr(transformers, f"{stem}Config")(**{**GATED, **options})
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


def opened(kind: str, implementation: str | None, tokenizer: Any, **options: Any) -> Any:
    plain = make(kind, **options)
    return plain, load_model(plain, tokenizer=tokenizer, implementation=implementation)


def differs_by_itself(plain: Any, implementation: str, tokenizer: Any, length: int) -> float:
    """Nats between the plain forward and the converted model on one long prompt, unchecked."""
    source = huggingface.from_memory(plain, tokenizer, dtype=torch.float32)
    convert = {"hooked": conversion.to_hooked, "bridge": conversion.to_bridge}[implementation]
    adapter = as_adapter(convert(source, device="cpu"))
    tokens = torch.arange(length)[None] * 31 % 590 + 3
    at = torch.full((1, 1), length - 1)
    found = adapter.forward(tokens, tokens > 0, readers={}, logits_at=at)
    with torch.no_grad():
        wanted = plain(tokens).logits[:, -1:]
    return float((found.log_softmax(-1) - wanted.log_softmax(-1)).abs().max())


@needs_hooked
@pytest.mark.parametrize(
    ("kind", "window"),
    [("Qwen2ForCausalLM", 8), ("Qwen3ForCausalLM", 64), ("Qwen2ForCausalLM", 700)],
)
def test_windows_that_a_hooked_transformer_forgets(tiny_hf: Any, kind: str, window: int) -> None:
    """Below, within and beyond what a prompt of the comparison reaches."""
    options = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    plain = make(kind, **options)
    assert differs_by_itself(plain, "hooked", tiny_hf[1], window + 9) > 0.1
    with pytest.raises(LensSkillsError, match=r"differ by [0-9.]+ nats.*implementation='bridge'"):
        load_model(plain, tokenizer=tiny_hf[1], implementation="hooked")
    with pytest.warns(UserWarning, match=r"opened as a TransformerBridge.*[0-9] nats"):
        model = load_model(plain, tokenizer=tiny_hf[1])
    same_as(model, plain)
    assert plain.config.sliding_window == window


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [6, 700])
def test_windows_that_are_kept_pass(tiny_hf: Any, implementation: str, window: int) -> None:
    plain, model = opened("MistralForCausalLM", implementation, tiny_hf[1], sliding_window=window)
    assert plain.config.sliding_window == window
    config = getattr(model, "original_model", plain).config
    assert config.sliding_window == window  # narrowed for the comparison only
    assert differs_by_itself(plain, implementation, tiny_hf[1], window + 9) < 1e-3
    tokens = torch.arange(30)[None] + 5
    found = as_adapter(model).forward(
        tokens, tokens > 0, readers={}, logits_at=torch.tensor([[29]])
    )
    torch.testing.assert_close(
        found.log_softmax(-1)[0, 0], plain(tokens).logits[0, -1].log_softmax(-1), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("CohereForCausalLM", {"logit_scale": 1.0}),
        ("Cohere2ForCausalLM", {"logit_scale": 1.0, "sliding_window": 8}),
        ("FalconForCausalLM", {"alibi": True, "new_decoder_architecture": False}),
    ],
)
def test_a_bridge_that_computes_something_else_is_refused(
    tiny_hf: Any, kind: str, options: dict[str, Any]
) -> None:
    plain = make(kind, **options)
    wrong = differs_by_itself(plain, "bridge", tiny_hf[1], 13) > 1e-3
    if not wrong:
        pytest.skip(f"this TransformerLens has {kind} right")
    with pytest.raises(LensSkillsError, match=r"cannot be opened.*[0-9] nats") as caught:
        load_model(plain, tokenizer=tiny_hf[1])
    assert "implementation=" not in str(caught.value)  # no two messages that point at each other


def test_an_error_under_padding_alone_is_seen(
    tiny_hf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right alone and padded on the right; on the left every token is at the wrong position."""

    def misplace(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if bool((kwargs["position_ids"][:, 1] == 0).any()):
            places = torch.arange(kwargs["position_ids"].shape[1]) ** 2 // 2
            kwargs["position_ids"] = places.expand_as(kwargs["position_ids"])
        return args, kwargs

    def corrupt(source: Any, *, device: str) -> Any:
        bridge = convert(source, device=device)
        bridge.original_model.register_forward_pre_hook(misplace, with_kwargs=True)
        return bridge

    convert = conversion.to_bridge
    monkeypatch.setattr(conversion, "to_bridge", corrupt)
    with pytest.raises(LensSkillsError, match="padded left"):
        load_model(tiny_hf[0], tokenizer=tiny_hf[1], implementation="bridge")


def with_changed(name: str, change: Any) -> Any:
    """A hook that gives a forward pass another value of one of its arguments."""

    def hook(module: Any, args: Any, given: dict[str, Any]) -> Any:
        return args, given | {name: change(given[name].clone(), given["attention_mask"])}

    return lambda plain: plain.register_forward_pre_hook(hook, with_kwargs=True)


def one_neuron(plain: Any) -> None:
    """More of the first neuron of the last layer, without which the logits hardly move."""

    def hook(module: Any, args: Any) -> Any:
        return (torch.cat([1.1 * args[0][..., :1], args[0][..., 1:]], -1),)

    plain.model.layers[-1].mlp.down_proj.register_forward_pre_hook(hook)


def shorten(mask: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The last real token is not seen where padding follows."""
    ends = mask.cumsum(1) == mask.sum(1, keepdim=True)
    return mask if bool(mask[:, -1].all()) else mask.masked_fill(ends, 0)


FAULTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "every token is seen": (with_changed("attention_mask", lambda m, _: m.fill_(1)), {}),
    "the first row's mask for all": (
        with_changed("attention_mask", lambda m, _: m[:1].expand_as(m).clone()), {},
    ),
    "the last token is not seen": (with_changed("attention_mask", shorten), {}),
    "positions end at 11": (with_changed("position_ids", lambda p, _: p.clamp(max=11)), {}),
    "positions twice as far alone": (
        with_changed("position_ids", lambda p, m: p * (2 if bool(m.all()) else 1)), {},
    ),
    "in a window, positions end at 3": (
        with_changed("position_ids", lambda p, _: p.clamp(max=3)), {"sliding_window": 6},
    ),
    "more of one neuron": (one_neuron, {"sliding_window": 700}),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "options"), FAULTS.values(), ids=FAULTS)
def test_faults_of_a_conversion_are_seen(tiny_hf: Any, fault: Any, options: dict[str, Any]) -> None:
    plain = make("MistralForCausalLM" if options else "LlamaForCausalLM", **options)
    for broken in (False, True):
        source = huggingface.from_memory(plain, tiny_hf[1], dtype=torch.float32)
        expected = parity.references(source.model, "plain")
        bridge = conversion.to_bridge(source, device="cpu")
        if broken:
            fault(bridge.original_model)
        assert parity.measured(bridge, expected, source.model).passed is not broken


def passes(plain: Any, name: str = "plain") -> tuple[int, Any]:
    """How many forward passes the references take, and what they are."""
    seen: list[Any] = []
    handle = plain.register_forward_pre_hook(lambda *a: seen.append(a))
    (found,) = parity.references(plain, name)
    handle.remove()
    return len(seen), found


def same_as_alone(plain: Any, found: parity.Reference) -> None:
    """Every row of the references is what the plain forward computes of it."""
    for row, wanted in zip(found.rows, found.log_probabilities, strict=True):
        with torch.no_grad():
            own = plain(row[None]).logits[0].double().log_softmax(-1)
        torch.testing.assert_close(wanted, own[-parity.COMPARED :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 40])
def test_one_pass_gives_every_row(window: int | None) -> None:
    plain = make("MistralForCausalLM", sliding_window=window)
    n_passes, found = passes(plain)
    assert n_passes == 2  # and one in which a later token is another
    assert [len(row) for row in found.rows] == [13, 9, 5, *([49] if window else [])]
    same_as_alone(plain, found)
    kept: list[Any] = []
    plain.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda m, a: kept.append(a[0][0]))
    for row, wanted in zip(found.rows, found.neurons[1], strict=True):
        with torch.no_grad():
            plain(row[None])
        torch.testing.assert_close(wanted, kept.pop(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [1e-4, 0.1])
def test_each_row_has_its_pass_where_the_length_counts(share: float) -> None:
    """By less than its bar, and by so much that it would look like an encoder."""
    plain = make("LlamaForCausalLM")
    plain.model.layers[0].mlp.register_forward_hook(
        lambda m, a, out: out * (1 + share * out.shape[1])
    )
    n_passes, found = passes(plain)
    assert n_passes == 1 + 1 + 3 + 1
    same_as_alone(plain, found)


@needs_hooked
@pytest.mark.parametrize(
    ("scaling", "reason"),
    [
        ({"rope_type": "linear", "factor": 4.0}, None),
        ({"rope_type": "dynamic", "factor": 4.0}, None),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}, None),
        (
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64,
             "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "kept",
        ),
    ],
)  # fmt: skip
def test_position_scales(tiny_hf: Any, scaling: dict[str, Any], reason: str | None) -> None:
    """Whichever way it is opened, far positions are the original's."""
    parameters = {**scaling, "rope_theta": 10000.0}
    plain = make("LlamaForCausalLM", rope_parameters=parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(plain, tokenizer=tiny_hf[1])
    adapter = as_adapter(model)
    tokens = torch.arange(400)[None] * 7 % 590 + 3
    at = torch.full((1, 1), 399)
    found = adapter.forward(tokens, tokens > 0, readers={}, logits_at=at)
    with torch.no_grad():
        wanted = plain(tokens).logits[:, -1:]
    torch.testing.assert_close(found.log_softmax(-1), wanted.log_softmax(-1), atol=2e-3, rtol=0)
    assert reason is None or adapter.implementation == "hooked"


@needs_hooked
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LlamaForCausalLM", {"attention_bias": True}),
        ("LlamaForCausalLM", {"mlp_bias": True}),
        ("GPTNeoXForCausalLM", {"rotary_pct": 0.4, "num_key_value_heads": 4}),
    ],
)
def test_what_hooked_gets_wrong_is_opened_by_the_bridge(
    tiny_hf: Any, kind: str, options: dict[str, Any]
) -> None:
    plain = make(kind, **options)
    for name, parameter in plain.named_parameters():
        if name.endswith("bias"):  # transformers begins them at zero
            torch.nn.init.normal_(parameter, std=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(plain, tokenizer=tiny_hf[1])
    same_as(model, plain)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_model_of_ones_own_and_its_twin(tiny_hf: Any, implementation: str) -> None:
    own = load_model(tiny_hf[0], tokenizer=tiny_hf[1], implementation=implementation)
    assert load_model(own, twin=tiny_hf[0]) is own
    other = copy.deepcopy(tiny_hf[0])
    with torch.no_grad():
        other.lm_head.weight[7] *= 2
    with pytest.raises(LensSkillsError, match=r"does not compute.*[0-9] nats"):
        load_model(own, twin=other)
    with pytest.raises(LensSkillsError, match="of your own"):
        load_model(tiny_hf[0], tokenizer=tiny_hf[1], twin=other)
    for thing in ("gpt2", 3, own):
        with pytest.raises(LensSkillsError, match="twin"):
            load_model(own, twin=thing)


def test_the_wrapped_model_is_no_twin(tiny_bridge: Any) -> None:
    with pytest.raises(LensSkillsError, match="very model this bridge wraps"):
        load_model(tiny_bridge, twin=tiny_bridge.original_model)


def test_small_differences_count_where_logits_are_flat(tiny_hf: Any) -> None:
    """0.0004 nats of a spread of 0.02 are an error, and nobody sees it in nats."""
    plain = make("LlamaForCausalLM", initializer_range=0.01)
    found = load_model(plain, tokenizer=tiny_hf[1])
    assert found.parity.spread < 0.1
    other = copy.deepcopy(plain)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(3)
    apart = parity.measured(found, parity.references(other, "other"), other)
    assert 1e-5 < apart.log_probability < 1e-2
    assert not apart.passed


def test_an_overflow_is_called_one(tiny_hf: Any) -> None:
    plain = copy.deepcopy(tiny_hf[0])
    with torch.no_grad():
        plain.model.layers[1].mlp.down_proj.weight.mul_(1e6)
    with pytest.raises(LensSkillsError, match=r"float16 ends at 65504.*bfloat16"):
        load_model(plain, tokenizer=tiny_hf[1], dtype="float16")
    load_model(plain, tokenizer=tiny_hf[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", torch.bfloat16])
def test_each_dtype_has_its_bar(tiny_hf: Any, implementation: str, dtype: Any) -> None:
    model = load_model(tiny_hf[0], tokenizer=tiny_hf[1], implementation=implementation, dtype=dtype)
    found = model.parity
    assert found.passed
    assert found.allowed[0] <= {"float32": 1e-3, "float16": 0.05}.get(dtype, 0.15) * 4


@pytest.mark.parametrize("dtype", ["float8", "int8", torch.int64])
def test_a_dtype_there_is_none_of(tiny_hf: Any, dtype: Any) -> None:
    with pytest.raises(LensSkillsError, match=r"dtype=.*bfloat16, float16, float32, float64"):
        load_model(tiny_hf[0], tokenizer=tiny_hf[1], dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", 99, "cuda:99", "meta", -1])
def test_a_device_there_is_none_of(tiny_hf: Any, device: Any) -> None:
    with pytest.raises(LensSkillsError, match=r"device=.*There are cpu"):
        load_model(tiny_hf[0], tokenizer=tiny_hf[1], device=device)


def test_a_device_by_its_object(tiny_hf: Any) -> None:
    load_model(tiny_hf[0], tokenizer=tiny_hf[1], device=torch.device("cpu"))
