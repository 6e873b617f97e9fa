"""What every test can ask for: tiny models on both implementations, the real one, task files."""

import copy
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from tests import shapes
from tests.tiny_tokenizer import tiny_tokenizer

# Every shape in a signature is checked in every test run: the hook is set before anything imports
# lens_skills. And a forgotten hub name fails at once instead of trying the network: the variable is
# read when the first Hugging Face library is imported, which here is inside the fixtures.
jaxtyping.install_import_hook("lens_skills", f"{shapes.__name__}.check")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # a terminal's width, to which messages would be folded

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # two workers with two threads each are several times slower

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Any connection that leaves this machine raises."""

    def guard(connect: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            host = address[0] if isinstance(address, tuple) else "localhost"  # a Unix socket
            if host not in ("localhost", "::1") and not str(host).startswith("127."):
                raise RuntimeError(f"a test tried to connect to {address!r}; tests run offline")
            return connect(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guard(socket.socket.connect_ex))
        yield


@pytest.fixture(scope="session")
def first_options() -> dict[str, Any]:
    """The options of `lens_skills.config` before any test."""
    from lens_skills import settings

    return dict(settings._ACTIVE)


@pytest.fixture(autouse=True)
def options_are_put_back(first_options: dict[str, Any]) -> Iterator[None]:
    """A script that runs inside a test, or in a fixture, sets options for good: till here."""
    yield
    import lens_skills

    lens_skills.config(**first_options)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with public task files that lies beside the project, where there is one."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the project (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama with seeded random weights and its tokenizer: loads in milliseconds."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                if "norm" in name:  # all ones would hide a forgotten norm weight
                    parameter.add_(0.1 * torch.randn_like(parameter))
                if "embed_tokens" in name:  # the token, not the context, leads in layer 0
                    parameter.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell without job control starts what runs behind it so that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_hf(tiny_folder: Path) -> tuple[Any, Any]:
    """The tiny model as transformers opens it, with its tokenizer: the independent oracle."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def tiny_hooked(tiny_folder: Path, tiny_hf: tuple[Any, Any]) -> Any:
    """The tiny model as a HookedTransformer, made without lens_skills."""
    try:
        from transformer_lens import HookedTransformer
        from transformer_lens.loading_from_pretrained import (
            get_pretrained_model_config,
            get_pretrained_state_dict,
        )
    except ImportError:
        pytest.skip("this TransformerLens has no HookedTransformer (removed in 4.0)")
    model, tokenizer = tiny_hf
    config = get_pretrained_model_config(
        str(tiny_folder),
        hf_cfg=model.config.to_dict(),
        device="cpu",
        dtype=torch.float32,
        default_prepend_bos=True,  # TransformerLens's default, and the bridge's
    )
    weights = get_pretrained_state_dict(str(tiny_folder), config, model, dtype=torch.float32)
    hooked = HookedTransformer(config, copy.deepcopy(tokenizer), move_to_device=False)
    hooked.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return hooked.eval()


@pytest.fixture(scope="session")
def tiny_bridge(tiny_folder: Path, tiny_hf: tuple[Any, Any]) -> Any:
    """The tiny model as a TransformerBridge, made without lens_skills."""
    from transformer_lens.model_bridge import TransformerBridge

    model, tokenizer = tiny_hf
    return TransformerBridge.boot_transformers(
        str(tiny_folder),
        hf_model=copy.deepcopy(model),  # the bridge changes the model it wraps
        tokenizer=copy.deepcopy(tokenizer),
        device="cpu",
        dtype=torch.float32,
    ).eval()


@pytest.fixture(scope="session", params=["hooked", "bridge"])
def tiny(request: pytest.FixtureRequest) -> Any:
    """The tiny model on each implementation this TransformerLens has."""
    return request.getfixturevalue(f"tiny_{request.param}")


def hooks_on(model: Any) -> list[str]:
    """The hooks a model carries that are not its libraries' own."""
    left = [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
    for root in (model, getattr(model, "original_model", model)):
        for name, module in root.named_modules():
            hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            homes = {str(getattr(hook, "__module__", "")).split(".")[0] for hook in hooks}
            left += [f"{name} of {home}" for home in homes - {"transformer_lens", "transformers"}]
    return left


@pytest.fixture(autouse=True)
def no_hook_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tiny models are shared: a hook that one test leaves would be in all that follow."""
    yield
    for name in ("tiny_hooked", "tiny_bridge"):
        if name in request.fixturenames:
            left = hooks_on(request.getfixturevalue(name))
            assert not left, f"{name} carries hooks at {left[:5]} after the test"


@pytest.fixture(scope="session")
def smollm() -> Any:
    """The bundled default model, as a user opens it. Tests that use it are marked ``slow``."""
    import lens_skills

    return lens_skills.load_model()
