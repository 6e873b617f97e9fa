"""A GGUF file read once gives, to the byte, what the libraries' own readers give."""

import json
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
import transformers.modeling_gguf_pytorch_utils as loader

from lens_skills.errors import LensSkillsError
from lens_skills.models import gguf_cache, gguf_weights
from lens_skills.models.gguf_metadata import check_whole
from lens_skills.models.gguf_reading import read_once
from lens_skills.models.gguf_weights import one_by_one
from tests.models.tiny_gguf import write_gguf

KINDS = sorted(gguf.quants._type_traits)


FILES: dict[str, dict[str, Any]] = {
    "float32": {},
    "tied": {"tied": True},
    "Q4_0": {"kind": gguf.GGMLQuantizationType.Q4_0},
    "F16": {"kind": gguf.GGMLQuantizationType.F16},
    "qwen2": {"architecture": "qwen2"},
}


@pytest.mark.parametrize("options", FILES.values(), ids=FILES)
def test_the_folder_is_the_same_to_the_byte(
    tiny_hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """As `transformers` by itself reads, builds and saves it."""
    path = write_gguf(*tiny_hf, tmp_path / "x.gguf", **options)
    built: list[Any] = []
    build = gguf_cache._save_model
    monkeypatch.setattr(gguf_cache, "_save_model", lambda *a: built.append(a) or build(*a))

    def files(where: str) -> dict[str, str]:
        monkeypatch.setenv("LENS_SKILLS_CACHE", str(tmp_path / where))
        entry = gguf_cache.converted(path)
        assert gguf_cache.intact(entry)
        return json.loads((entry / gguf_cache.MANIFEST).read_text())["files"]

    direct = files("direct")
    assert not built
    monkeypatch.setattr(gguf_weights, "PIECE", 100)
    assert files("pieces") == direct
    monkeypatch.setattr(gguf_cache, "one_by_one", lambda *a: None)
    assert files("built") == direct
    monkeypatch.setattr(gguf_cache, "read_once", nullcontext)
    assert files("plain") == direct
    assert len(built) == 2
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(direct)


@pytest.mark.parametrize("missing", ["blk.1.ffn_up.weight", "token_embd.weight"])
def test_a_file_without_all_the_models_weights_is_not_written_one_by_one(
    tiny_hf: Any, tmp_path: Path, missing: str
) -> None:
    path = write_gguf(*tiny_hf, tmp_path / "x.gguf", without=missing)
    assert one_by_one(path, check_whole(path)) is None


def test_nor_are_tensors_of_another_shape_or_architecture(
    tiny_hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(*tiny_hf, tmp_path / "x.gguf")
    shell = check_whole(path)
    assert one_by_one(path, shell) is not None
    kinds = loader.TENSOR_PROCESSORS | {"llama": loader.GPT2TensorProcessor}
    with monkeypatch.context() as patch:
        patch.setattr(loader, "TENSOR_PROCESSORS", kinds)
        assert one_by_one(path, shell) is None
    shell.model.layers[0].mlp.up_proj.weight.data = torch.empty(7, 32, device="meta")
    assert one_by_one(path, shell) is None


def test_a_tensor_that_cannot_be_dequantised(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise NotImplementedError("Dequantization is not yet implemented")

    monkeypatch.setattr(gguf, "dequantize", refuse)
    with pytest.raises(LensSkillsError, match=r"could not be converted: .*not yet implemented"):
        gguf_cache.converted(tiny_gguf)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_dequantised_numbers_are_the_same_to_the_bit(kind: Any) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 256, (37, 5 * size)).astype(np.uint8)
    with np.errstate(all="ignore"):  # random bytes hold infinities too
        plain = gguf.dequantize(rows, kind)
        with read_once():
            found = gguf.dequantize(rows, kind)
            stacked = gguf.dequantize(np.stack([rows, rows]), kind)
    assert found.shape == (37, 5 * block)
    assert stacked.shape == (2, 37, 5 * block)
    assert (found.view(np.uint32) == plain.view(np.uint32)).all()
    assert (stacked[1].view(np.uint32) == plain.view(np.uint32)).all()


def test_groups_are_many_where_a_tensor_is_large() -> None:
    rows = np.random.default_rng(0).integers(0, 100, (3000, 18 * 3)).astype(np.uint8)
    plain = gguf.dequantize(rows, gguf.GGMLQuantizationType.Q4_0)
    with read_once():
        found = gguf.dequantize(rows, gguf.GGMLQuantizationType.Q4_0)
    assert found.tobytes() == plain.tobytes()


def test_every_kind_of_list_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lists.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    lists: dict[str, list[Any]] = {
        "ints": [3, -1, 2**31 - 1], "floats": [0.5, -1e9], "truths": [True, False],
        "texts": ["", "ä 中", "x" * 300], "one": ["alone"],
    }  # fmt: skip
    for name, values in lists.items():
        writer.add_array(f"lens.{name}", values)
    writer.add_uint32("lens.number", 7)
    writer.add_string("lens.text", "said")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def read() -> dict[str, Any]:
        fields = gguf.GGUFReader(str(path)).fields
        parse = loader._gguf_parse_value
        return {
            name: (
                field.contents(),
                field.types,
                [parse(field.parts[index], field.types) for index in field.data],
            )
            for name, field in fields.items()
        }

    plain = read()
    with read_once():
        found = read()
    assert found == plain
    assert found["lens.texts"][0] == lists["texts"]


@pytest.mark.parametrize("direct", [True, False])
def test_the_file_is_parsed_once(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    count: Counter[str] = Counter()
    parse = gguf.GGUFReader._build_fields
    load = loader.load_gguf_checkpoint

    def parsed(self: Any, *args: Any) -> Any:
        count["parsed"] += 1
        return parse(self, *args)

    def loaded(path: Any, return_tensors: bool = False, **options: Any) -> Any:
        count["tensors" if return_tensors else "configuration"] += 1
        return load(path, return_tensors, **options)

    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", parsed)
    monkeypatch.setattr(loader, "load_gguf_checkpoint", loaded)
    if not direct:
        monkeypatch.setattr(gguf_cache, "one_by_one", lambda *a: None)
    gguf_cache.converted(tiny_gguf)
    assert count["parsed"] == 1
    assert count["tensors"] == (not direct)
    assert count["configuration"] <= 1  # older transformers come to it by another way


def test_a_configuration_is_the_callers_own(tiny_gguf: Path) -> None:
    plain = loader.load_gguf_checkpoint(str(tiny_gguf))
    with read_once():
        first = loader.load_gguf_checkpoint(str(tiny_gguf))
        assert first == plain
        first["config"].clear()
        first["tokenizer"]["tokens"].append("more")
        assert loader.load_gguf_checkpoint(str(tiny_gguf)) == plain


def test_the_libraries_are_as_before_afterwards() -> None:
    names = {
        gguf: ("GGUFReader", "get_tensor_name_map"),
        gguf.quants: ("_apply_over_grouped_rows",),
        loader: ("load_gguf_checkpoint", "_gguf_parse_value", "np"),
    }
    before = [getattr(module, name) for module, own in names.items() for name in own]
    inside: list[Any] = []
    with suppress(RuntimeError), read_once():
        inside = [getattr(module, name) for module, own in names.items() for name in own]
        raise RuntimeError
    after = [getattr(module, name) for module, own in names.items() for name in own]
    assert after == before
    assert not any(one is other for one, other in zip(inside, before, strict=True))
