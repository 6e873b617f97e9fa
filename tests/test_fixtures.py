"""What the other tests stand on: the tiny models, the shape check and the closed network."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from lens_skills.stats.effect_tests import delta_from_controls


def test_tiny_models_equal_the_plain_forward(tiny: Any, tiny_hf: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_hf
    tokens = torch.randint(3, len(tokenizer), (4, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(tiny(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_tiny_activations_are_neither_dead_nor_huge(tiny: Any) -> None:
    tokens = torch.randint(3, tiny.cfg.d_vocab, (8, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = tiny.run_with_cache(tokens)
    for layer in range(tiny.cfg.n_layers):
        spread = cache[f"blocks.{layer}.mlp.hook_post"].flatten(0, 1).std(dim=0)
        assert spread.min() > 0.05
        assert spread.max() < 10


def test_saved_tokenizer_is_the_trained_one(tiny_hf: tuple[Any, Any]) -> None:
    """Digits stand alone, a word keeps its leading space, nothing is added, text comes back."""
    _, tokenizer = tiny_hf
    text = "What is 12 plus 5? The keys"
    pieces = ["What", "Ġis", "Ġ", "1", "2", "Ġplus", "Ġ", "5", "?", "ĠThe", "Ġkeys"]
    assert tokenizer.tokenize(text) == pieces
    assert len(tokenizer(text).input_ids) == len(pieces)
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<s>",
        "</s>",
        "<pad>",
    )


def test_chat_template_writes_its_own_bos(tiny_hf: tuple[Any, Any]) -> None:
    chat = [{"role": "user", "content": "hello"}]
    _, tokenizer = tiny_hf
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == "<s>user: hello\nassistant: "


def test_shapes_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        delta_from_controls(torch.ones(3).long())  # an integer tensor where a float is declared
    delta_from_controls(torch.ones(3), at_least=1)  # an int for a float is right


@pytest.mark.parametrize("connect", ["connect", "connect_ex"])
def test_the_network_is_closed(connect: str) -> None:
    with socket.socket() as client, pytest.raises(RuntimeError, match="tests run offline"):
        getattr(client, connect)(("192.0.2.1", 9))  # an address reserved for documentation


def test_this_machine_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_shared_data_has_the_arithmetic_files(shared_data: Path) -> None:
    assert len(list((shared_data / "bigbench_arithmetic").glob("*.json"))) == 20
