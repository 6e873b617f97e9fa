"""Weights that stand elsewhere: offloaded by accelerate, on 'meta', on several devices."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter, load_model
from lens_skills.models.huggingface import quiet
from lens_skills.models.partial_forward import CannotResume, prefill
from tests.models.conftest import IMPLEMENTATIONS, same_as

accelerate = pytest.importorskip("accelerate")


def offloaded(tiny_hf: Any, folder: Path, how: str) -> Any:
    """The tiny Llama, whose weights accelerate keeps elsewhere between passes."""
    tiny_hf[0].save_pretrained(folder / "plain")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    for layer in range(tiny_hf[0].config.num_hidden_layers):
        places[f"model.layers.{layer}"] = "disk" if layer == 1 else "cpu"
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if how == "device_map":
        options |= {"device_map": {**places, "lm_head": "cpu"}, "offload_folder": folder / "off"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "plain", **options).eval()
    if how == "cpu_offload":
        accelerate.cpu_offload(model, execution_device="cpu")
    if how == "disk_offload":
        accelerate.disk_offload(model, str(folder / "off"), execution_device="cpu")
    assert any(weight.is_meta for weight in model.parameters())
    return model


@pytest.mark.parametrize("how", ["device_map", "cpu_offload", "disk_offload"])
def test_offloaded_weights_are_gathered(tiny_hf: Any, tmp_path: Path, how: str) -> None:
    theirs = offloaded(tiny_hf, tmp_path, how)
    for implementation in IMPLEMENTATIONS:
        model = load_model(theirs, tokenizer=tiny_hf[1], implementation=implementation)
        assert as_adapter(model).device.type == "cpu"
        same_as(model, tiny_hf[0])
    tokens = torch.arange(9)[None] + 3
    with torch.no_grad():  # theirs stays as it was
        torch.testing.assert_close(theirs(tokens).logits, tiny_hf[0](tokens).logits)


def test_a_dispatched_model_is_copied_without_its_hooks(tiny_hf: Any) -> None:
    """They would send each part's inputs back to the device it was taken from."""
    theirs = copy.deepcopy(tiny_hf[0])
    accelerate.dispatch_model(theirs, {"model": "cpu", "lm_head": "cpu"}, force_hooks=True)
    assert hasattr(theirs, "_hf_hook")
    model = load_model(theirs, tokenizer=tiny_hf[1], implementation="bridge")
    assert not any(hasattr(part, "_hf_hook") for part in model.original_model.modules())
    same_as(model, tiny_hf[0])
    assert hasattr(theirs, "_hf_hook")


def test_weights_that_are_nowhere_are_refused(tiny_hf: Any) -> None:
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(tiny_hf[0].config)
    with pytest.raises(LensSkillsError, match=r"not in memory .*Load it without offload"):
        load_model(empty, tokenizer=tiny_hf[1])


def test_a_bridge_over_offloaded_weights_is_refused(tiny_hf: Any) -> None:
    bridge = load_model(tiny_hf[0], tokenizer=tiny_hf[1], implementation="bridge")
    accelerate.cpu_offload(bridge.original_model.model.layers[1], execution_device="cpu")
    with pytest.raises(LensSkillsError, match="not all here"):
        as_adapter(bridge)


def test_blocks_on_several_devices_run_whole(tiny_hf: Any) -> None:
    adapter = as_adapter(load_model(tiny_hf[0], tokenizer=tiny_hf[1]))
    assert not adapter.spread
    adapter.spread = True
    tokens = torch.arange(9)[None] + 3
    with pytest.raises(CannotResume, match="stand on several devices"):
        prefill(adapter, tokens, tokens > 0, start=5, readers={})


def test_what_bitsandbytes_says_at_import_is_kept_away() -> None:
    said = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before = said.isEnabledFor(logging.WARNING)
    with quiet():
        assert not said.isEnabledFor(logging.WARNING)
    assert said.isEnabledFor(logging.WARNING) is before
