"""A folder of SAELens is read as SAELens reads it; what would be computed otherwise is refused.

``saelens/`` holds small random dictionaries that SAELens 6.54.12 saved, and in
``expected.safetensors`` what it made of ``x``: features, and what the decoder adds where feature 1
rises by 1.5 and feature 4 becomes 0.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.models.dictionaries import CONFIG, WEIGHTS

FOLDERS = Path(__file__).parent / "saelens"
KINDS = sorted(path.name for path in FOLDERS.iterdir() if path.is_dir())
EXPECTED = load_file(FOLDERS / "expected.safetensors")


def moved(features: Tensor) -> Tensor:
    change = torch.zeros_like(features)
    change[..., 1], change[..., 4] = 1.5, -features[..., 4]
    return change


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_writes_are_those_of_saelens(kind: str) -> None:
    one, x = ls.load_dictionary(FOLDERS / kind), EXPECTED["x"]
    features = one.encode(x)
    assert 0.05 < (features > 0).float().mean() < 0.95
    torch.testing.assert_close(features, EXPECTED[kind], atol=1e-6, rtol=1e-5)
    if f"{kind}.written" in EXPECTED:
        found = one.written(moved(features), x)
        torch.testing.assert_close(found, EXPECTED[f"{kind}.written"], atol=3e-6, rtol=1e-5)
    assert one.hook_point == "blocks.2.features"
    assert one.transcodes == ("transcoder" in kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_back_the_same(kind: str, tmp_path: Path) -> None:
    one = ls.load_dictionary(FOLDERS / kind, name="mine")
    again = ls.load_dictionary(one.save(tmp_path / "saved"))
    assert again.digest == one.digest
    assert again.hook_point == "blocks.2.mine"
    assert torch.equal(again.encode(EXPECTED["x"]), one.encode(EXPECTED["x"]))
    with pytest.raises(LensSkillsError, match="exists already"):
        one.save(tmp_path / "saved")


def test_any_number_and_setting_changes_the_digest() -> None:
    weight = torch.eye(3)
    made = [
        ls.Dictionary(weight, weight, "blocks.0.hook_resid_post"),
        ls.Dictionary(weight, 2 * weight, "blocks.0.hook_resid_post"),
        ls.Dictionary(weight, weight, "blocks.1.hook_resid_post"),
        ls.Dictionary(weight, weight, "blocks.0.hook_resid_post", name="mine"),
        ls.Dictionary(weight, weight, "blocks.0.hook_resid_post", apply_b_dec_to_input=False),
        ls.Dictionary(weight, weight, "blocks.0.hook_resid_post", architecture="topk", k=2),
    ]
    assert len({one.digest for one in made}) == len(made)
    same = ls.Dictionary(weight.clone(), weight, "blocks.0.hook_resid_post", model="other")
    assert same.digest == made[0].digest


def test_half_precision_is_computed_in_float32() -> None:
    one = ls.load_dictionary(FOLDERS / "standard")
    x = EXPECTED["x"].to(torch.bfloat16)
    found = one.encode(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, one.encode(x.float()))
    assert one.encode(EXPECTED["x"].double()).dtype == torch.float64


def altered(tmp_path: Path, kind: str, config: dict[str, Any], parts: dict[str, Any]) -> Path:
    """A folder of SAELens with other settings (None: left out) and parts."""
    folder = tmp_path / "altered"
    shutil.copytree(FOLDERS / kind, folder)
    said = json.loads((folder / CONFIG).read_text())
    said["metadata"] |= config.pop("metadata", {})
    said = {name: value for name, value in {**said, **config}.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(said))
    held = {**load_file(folder / WEIGHTS), **parts}
    held = {name: part for name, part in held.items() if part is not None}
    save_file(held, folder / WEIGHTS)
    return folder


NAN = torch.full((10,), torch.nan)


@pytest.mark.parametrize(
    ("kind", "config", "parts", "said"),
    [
        ("standard", {"architecture": "temporal"}, {}, "'temporal', which is not read here"),
        ("standard", {"architecture": "jumprelU"}, {}, "Did you mean 'jumprelu'"),
        ("standard", {"architecture": "jumprelu"}, {}, "holds no threshold"),
        ("jumprelu", {"architecture": "standard"}, {}, "holds 'threshold', which 'standard'"),
        ("standard", {"activation_fn_str": "tanh-relu"}, {}, "activation function 'tanh-relu'"),
        ("standard", {"normalize_activations": "expected_average_only_in"}, {}, "Fold them"),
        ("standard", {"normalize_activations": True}, {}, "'expected_average_only_in'"),
        ("standard", {"normalize_activations": "covariance_whitening"}, {}, "Fold them"),
        ("standard", {"metadata": {"hook_head_index": 3}}, {}, "reads a single head"),
        ("standard", {"finetuning_scaling_factor": True}, {}, "has a finetuning scale"),
        ("standard", {}, {"scaling_factor": torch.full((10,), 2.0)}, "holds 'scaling_factor'"),
        ("standard", {}, {"b_enc": None}, "holds no b_enc"),
        ("standard", {}, {"b_enc": NAN}, "b_enc holds numbers that are not finite"),
        ("standard", {}, {"b_enc": torch.zeros(3)}, r"b_enc has the shape \(3,\), not \(10,\)"),
        ("standard", {}, {"W_enc": torch.zeros(6)}, r"must be a matrix of numbers, not shape \(6,"),
        ("standard", {}, {"W_enc": torch.zeros(6, 9)}, "the columns of W_enc and the rows"),
        ("standard", {"d_sae": 12}, {}, "cfg.json says d_sae = 12, and the weights have 10"),
        ("standard", {"d_in": 7}, {}, "cfg.json says d_in = 7"),
        ("topk", {"k": 11}, {}, "k is 11, and must be a whole number from 1 to 10"),
        ("topk", {"k": None}, {}, "k= belongs to the architecture 'topk'"),
        ("topk", {"k": 0}, {}, "k is 0, and must be"),
        ("transcoder", {"apply_b_dec_to_input": True}, {}, "b_dec belongs to what is written"),
        ("transcoder", {"metadata": {"hook_name_out": None}}, {}, "does not say what is written"),
        ("transcoder", {"metadata": {"hook_name_out": "blocks.3.hook_mlp_out"}}, {}, "one block"),
        ("skip_transcoder", {}, {"W_skip": torch.full((4, 6), torch.inf)}, "W_skip in"),
        ("standard", {"metadata": {"hook_name": "hook_embed"}}, {}, "a hook point of a block"),
        ("standard", {"metadata": {"hook_name": None}}, {}, "does not say what is read"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(
    kind: str, config: dict[str, Any], parts: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = altered(tmp_path, kind, dict(config), parts)
    with pytest.raises(LensSkillsError, match=said) as error:
        ls.load_dictionary(folder)
    assert "altered" in str(error.value)


def test_a_factor_of_one_is_none(tmp_path: Path) -> None:
    folder = altered(tmp_path, "standard", {}, {"scaling_factor": torch.ones(10)})
    assert ls.load_dictionary(folder).digest == ls.load_dictionary(FOLDERS / "standard").digest


def test_a_model_that_was_opened_otherwise_is_said(tmp_path: Path) -> None:
    options = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder = altered(tmp_path, "standard", {"metadata": options}, {})
    with pytest.warns(UserWarning, match="center_writing_weights"):
        ls.load_dictionary(folder)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="no folder"):
        ls.load_dictionary(tmp_path / "none")
    folder = tmp_path / "sae"
    shutil.copytree(FOLDERS / "standard", folder)
    whole = (folder / WEIGHTS).read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:cut])
        with pytest.raises(LensSkillsError, match="cut short or no safetensors"):
            ls.load_dictionary(folder)
    (folder / WEIGHTS).unlink()
    (folder / "sae.pt").write_bytes(b"")
    with pytest.raises(LensSkillsError, match=r"sae\.pt would run code as it is opened"):
        ls.load_dictionary(folder)
    for text in ("", "[]", "{"):
        shutil.copy(FOLDERS / "standard" / WEIGHTS, folder)
        (folder / CONFIG).write_text(text)
        with pytest.raises(LensSkillsError, match=CONFIG):
            ls.load_dictionary(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "F 1"}, "small letters"),
        ({"name": ""}, "small letters"),
        ({"architecture": "relu"}, "must be one of: standard"),
        ({"normalize_activations": "batch"}, "must be one of: none"),
        ({"hook_name": "hook_resid_post"}, "in full"),
        ({"threshold": torch.zeros(4)}, "has no threshold"),
        ({"b_gate": torch.zeros(4)}, "has no b_gate"),
        ({"W_dec": torch.zeros(4, 5)}, "read by width 3 and written by width 5"),
        ({"W_enc": torch.zeros(3, 0), "W_dec": torch.zeros(0, 3)}, "are the features"),
        ({"W_enc": torch.zeros(3, 4, dtype=torch.long)}, "W_enc must be a matrix of numbers"),
    ],
)
def test_what_does_not_fit_together_is_refused(options: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "W_enc": torch.ones(3, 4),
        "W_dec": torch.ones(4, 3),
        "hook_name": "blocks.0.hook_resid_post",
        **options,
    }
    with pytest.raises(LensSkillsError, match=said):
        ls.Dictionary(**given)
