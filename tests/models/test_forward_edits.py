"""`ModelAdapter.forward(editors=…)`: an edit reaches the logits, and leaves nothing behind."""

from typing import Any

import pytest
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter

TOKENS = torch.tensor([[1, 40, 41, 42], [1, 50, 51, 52]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)
LAST = torch.tensor([[3], [3]])


def logits(model: Any, editors: Any) -> torch.Tensor:
    adapter = as_adapter(model)
    out = adapter.forward(TOKENS, REAL, logits_at=LAST, editors=editors, readers={})
    assert out is not None
    return out[:, 0]


def test_an_edit_equals_transformer_lens_own_hook(tiny: Any) -> None:
    name = "blocks.1.mlp.hook_post"

    def zero(activation: torch.Tensor, hook: Any = None) -> torch.Tensor:
        return torch.zeros_like(activation)

    with torch.no_grad():
        wanted = tiny.run_with_hooks(TOKENS, fwd_hooks=[(name, zero)])[:, -1]
        plain = tiny(TOKENS)[:, -1]
    torch.testing.assert_close(logits(tiny, {name: zero}), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(tiny, {}), plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(wanted, plain, atol=1e-3)


def test_an_edit_after_the_blocks_is_not_skipped(tiny: Any) -> None:
    name = "unembed.hook_in"
    edited = logits(tiny, {name: torch.zeros_like})
    assert not torch.allclose(edited, logits(tiny, {}), atol=1e-3)


def test_a_reader_sees_the_edited_activation_and_edits_nothing(tiny: Any) -> None:
    name, seen = "blocks.2.mlp.hook_post", []
    adapter = as_adapter(tiny)
    out = adapter.forward(
        TOKENS,
        REAL,
        readers={name: lambda activation: seen.append(activation.clone()) or activation * 9},  # type: ignore[func-returns-value]
        logits_at=LAST,
        editors={name: torch.ones_like},
    )
    assert out is not None
    assert torch.equal(seen[0], torch.ones_like(seen[0]))
    assert torch.equal(out[:, 0], logits(tiny, {name: torch.ones_like}))


def test_no_hook_is_left_after_an_error(tiny: Any) -> None:
    def fail(activation: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        logits(tiny, {"blocks.0.mlp.hook_post": fail})
    assert all(not point.fwd_hooks for point in tiny.hook_dict.values())


def test_an_unknown_hook_point_is_named(tiny: Any) -> None:
    with pytest.raises(LensSkillsError, match=r"mlp\.hook_pst"):
        logits(tiny, {"blocks.0.mlp.hook_pst": torch.zeros_like})
