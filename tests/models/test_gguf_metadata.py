"""What a GGUF file says and transformers drops is refused; files are parsed once."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models import gguf_cache, load_model
from lens_skills.models.gguf_metadata import check_lengths, check_whole
from tests.models.conftest import same_as
from tests.models.tiny_gguf import write_gguf

LOST: dict[str, dict[str, Any]] = {
    "rope.scaling.type = yarn": {
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64,
    },
    "rope.scaling.type = linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    "rope.scaling.factor = 2.0": {"rope.scaling.factor": 2.0},
    "rope.scale_linear = 4.0": {"rope.scale_linear": 4.0},
    "attention.sliding_window = 32": {"attention.sliding_window": 32},
    "final_logit_softcapping = 30.0": {"final_logit_softcapping": 30.0},
    "expert_count = 4": {"expert_count": 4},
    "attention.key_length = 16": {"attention.key_length": 16},
    "rope_freqs.weight": {"rope_freqs.weight": torch.tensor([1.0, 1.0, 4.0, 8.0])},
}  # fmt: skip


@pytest.mark.parametrize("said", LOST)
def test_what_is_not_carried_over_is_refused(tiny_hf: Any, tmp_path: Path, said: str) -> None:
    path = write_gguf(*tiny_hf, tmp_path / "x.gguf", also=LOST[said])
    with pytest.raises(LensSkillsError, match="does not carry that over") as caught:
        load_model(path)
    assert said in str(caught.value)


def test_what_says_nothing_new_is_opened(tiny_hf: Any, tmp_path: Path) -> None:
    also = {
        "rope.scaling.type": "none", "rope.scaling.factor": 1.0, "expert_count": 0,
        "attention.sliding_window": 256, "attention.key_length": 8, "attention.value_length": 8,
        "rope_freqs.weight": torch.ones(4),
    }  # fmt: skip
    same_as(load_model(write_gguf(*tiny_hf, tmp_path / "x.gguf", also=also)), tiny_hf[0])


def test_a_file_is_parsed_once(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    build = gguf.GGUFReader._build_fields

    def counted(self: Any, *args: Any) -> Any:
        parsed.append(self)
        return build(self, *args)

    own = gguf.GGUFReader, gguf.get_tensor_name_map
    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", counted)
    gguf_cache.converted(tiny_gguf)
    assert len(parsed) == 1
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == own


def _with_count(whole: bytes, key: bytes, count: int) -> bytes:
    """The file with another number where the value of a key begins (behind its types)."""
    place = whole.index(key) + len(key) + 4
    return whole[:place] + count.to_bytes(4, "little") + whole[place + 4 :]


@pytest.mark.parametrize(
    ("key", "count", "said"),
    [
        (b"llama.block_count", 100_000, "100,000 blocks"),
        (b"llama.embedding_length", 4096, "numbers in"),
        (b"llama.feed_forward_length", 1 << 20, "numbers in"),
    ],
)
def test_a_size_that_the_file_does_not_hold_is_not_built(
    tiny_gguf: Path, tmp_path: Path, key: bytes, count: int, said: str
) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(_with_count(tiny_gguf.read_bytes(), key, count))
    with pytest.raises(LensSkillsError, match=f"{said}.*damaged"):
        check_whole(path)


def test_an_array_longer_than_the_file_is_not_read(tiny_gguf: Path, tmp_path: Path) -> None:
    """The package's reader would go on until the memory is full."""
    whole = tiny_gguf.read_bytes()
    key = b"tokenizer.ggml.token_type"
    place = whole.index(key) + len(key) + 8
    path = tmp_path / "damaged.gguf"
    for kind in (5, 9):  # of numbers, of arrays
        changed = kind.to_bytes(4, "little") + (1 << 40).to_bytes(8, "little")
        path.write_bytes(whole[: place - 4] + changed + whole[place + 8 :])
        with pytest.raises(LensSkillsError, match="counts more than its"):
            check_lengths(path)
    check_lengths(tiny_gguf)
