"""What the tests of the models' room share: a cache of their own, the tiny GGUF, the oracle."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lens_skills.models import as_adapter
from lens_skills.models.conversion import has_hooked
from tests.models.tiny_gguf import write_gguf

IMPLEMENTATIONS = ("hooked", "bridge") if has_hooked() else ("bridge",)
needs_hooked = pytest.mark.skipif(
    not has_hooked(), reason="this TransformerLens has no HookedTransformer (removed in 4.0)"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Path:
    """An empty cache of converted models; slow tests use the user's."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("LENS_SKILLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_gguf(tiny_hf: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a GGUF file."""
    return write_gguf(*tiny_hf, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def same_as(model: Any, plain: Any, atol: float = 1e-4) -> None:
    """Equal log-probabilities of a loaded model and the plain Hugging Face one, left-padded."""
    adapter = as_adapter(model)
    tokens = torch.arange(24).view(2, 12) * 37 % adapter.d_vocab
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, :5] = False
    at = torch.full((2, 1), 11)
    found = adapter.forward(tokens, mask, readers={}, logits_at=at)
    assert found is not None
    with torch.no_grad():
        wanted = [plain(tokens[:1]).logits[0, -1], plain(tokens[1:, 5:]).logits[0, -1]]
    torch.testing.assert_close(
        found[:, 0].float().log_softmax(-1),
        torch.stack(wanted).float().log_softmax(-1),
        atol=atol,
        rtol=0,
    )
