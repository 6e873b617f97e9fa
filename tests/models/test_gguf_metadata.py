"""What a GGUF file says and transformers drops is refused; files are parsed once."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models import gguf_cache, load_model
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
