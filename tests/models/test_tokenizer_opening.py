"""A tokenizer that is read once and then told of BOS is as if it had been read with BOS."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lens_skills.models import huggingface
from lens_skills.models.huggingface import _begins, _opened_with_bos, _with_bos

BOS = {"none": None, "plain": "<s>", "colon": "<b:o>"}


@pytest.fixture(scope="module", params=BOS)
def folder(request: Any, tiny_hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer without BOS, with it, and with one no template can hold."""
    place, bos = tmp_path_factory.mktemp("tokenizer"), BOS[request.param]
    backend = tiny_hf[1].backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    if bos is not None:
        tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.save_pretrained(place)
    return place


def test_it_is_the_same_and_read_once(folder: Path) -> None:
    read: list[dict[str, Any]] = []

    def from_pretrained(where: str, **options: Any) -> Any:
        read.append(options)
        return AutoTokenizer.from_pretrained(where, local_files_only=True, **options)

    found, begins = _opened_with_bos(from_pretrained, str(folder))
    n_read = len(read)
    wanted = _with_bos(from_pretrained, str(folder))
    assert found.backend_tokenizer.to_str() == wanted.backend_tokenizer.to_str()
    assert dict(found.init_kwargs) == dict(wanted.init_kwargs)
    assert found.add_bos_token == wanted.add_bos_token
    assert found("The key")["input_ids"] == wanted("The key")["input_ids"]
    assert begins == _begins(from_pretrained(str(folder)))
    assert n_read == 1 or found.bos_token == BOS["colon"]


def test_another_class_is_read_again(tiny_folder: Path) -> None:
    class Own(PreTrainedTokenizerFast):
        pass

    read: list[dict[str, Any]] = []

    def from_pretrained(where: str, **options: Any) -> Any:
        read.append(options)
        return Own.from_pretrained(where, **options)

    found, _ = _opened_with_bos(from_pretrained, str(tiny_folder))
    assert read == [{}, {"add_bos_token": True}]
    assert found.add_bos_token


def test_an_opened_tokenizer_begins_as_before(tiny_folder: Path) -> None:
    found, begins = huggingface._tokenizer(str(tiny_folder))
    assert found("a")["input_ids"][0] == found.bos_token_id
    assert begins == _begins(AutoTokenizer.from_pretrained(tiny_folder))
