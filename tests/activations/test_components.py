"""A unit is named in words and means the features a plain hook would touch."""

from typing import Any

import pytest
import torch

from lens_skills.activations.components import Component, parse_components, site_width, sites_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.scoring import Selection


def selection(rows: list[list[int]], **provenance: Any) -> Selection:
    k = len(rows)
    numbers = torch.zeros(k, dtype=torch.float64)
    return Selection(
        neurons=torch.tensor(rows).reshape(-1, 2),
        position=("last",) * k,
        r_explore=numbers,
        r_confirm=numbers,
        p=numbers,
        q=numbers,
        mean=numbers,
        std=numbers,
        metric="m",
        site="mlp.hook_post",
        positions=("last",),
        attrition={},
        fdr=0.05,
        provenance=provenance,
    )


def test_every_way_to_name_a_neuron_means_the_same(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    expected = (
        Component("L1N2", 1, "mlp.hook_post", 2, 3),
        Component("L3N47", 3, "mlp.hook_post", 47, 48),
    )
    rows = [[1, 2], [3, 47]]
    assert parse_components(adapter, ["L1N2", "L3N47"]) == expected
    assert parse_components(adapter, [(1, 2), (3, 47)]) == expected
    assert parse_components(adapter, torch.tensor(rows)) == expected
    assert parse_components(adapter, expected) == expected
    assert parse_components(adapter, selection(rows)) == expected
    assert parse_components(adapter, "L1N2") == expected[:1]


def test_heads_and_mlps_are_slices_of_their_hook_points(tiny: Any) -> None:
    head, mlp = parse_components(as_adapter(tiny), ["L2H3", "L0MLP"])
    assert head == Component("L2H3", 2, "attn.hook_z", 24, 32)
    assert mlp == Component("L0MLP", 0, "hook_mlp_out", 0, 32)
    assert sites_of([head, mlp]) == {"attn.hook_z": (2,), "hook_mlp_out": (0,)}


def test_all_is_every_neuron_of_the_site(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    units = parse_components(adapter, "all")
    assert len(units) == len(set(units)) == 4 * 48
    assert len(parse_components(adapter, "all", at="hook_resid_post")) == 4 * 32
    assert units[48].name == "L1N0"


@pytest.mark.parametrize(
    ("at", "width"),
    [("mlp.hook_post", 48), ("attn.hook_z", 32), ("hook_resid_mid", 32), ("attn.hook_k", 16)],
)
def test_the_width_is_that_of_the_flattened_activation(tiny: Any, at: str, width: int) -> None:
    assert site_width(as_adapter(tiny), at) == width


@pytest.mark.parametrize(
    ("units", "words"),
    [
        (["L9N0"], "layers 0 to 3"),
        (["L0N48"], "48 neurons"),
        (["L0H4"], "4 heads of 8"),
        (["L0H1.8"], "4 heads of 8"),
        (["L0R32"], "32 features at hook_resid_post"),
        (["L4MLP"], "no unit 'L4MLP'"),
        (["N3"], "Names look like"),
        ([(0, -1)], "no unit"),
        ([(0, 1, 2)], "name or \\(layer, index\\)"),
        (["L0N1", (0, 1)], "named twice"),
        (object(), "names no units"),
        ([Component("mine", 0, "mlp.hook_post", 40, 60)], "no unit 'mine'"),
    ],
)
def test_what_the_model_does_not_have_is_refused(tiny: Any, units: Any, words: str) -> None:
    with pytest.raises(LensSkillsError, match=words):
        parse_components(as_adapter(tiny), units)


def test_a_selection_of_another_model_or_site_is_refused(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    other = selection([[0, 1]], explore={"model_fingerprint": "0" * 64})
    with pytest.raises(LensSkillsError, match="another model"):
        parse_components(adapter, other)
    own = selection([[0, 1]], explore={"model_fingerprint": adapter.fingerprint()})
    assert len(parse_components(adapter, own)) == 1
    with pytest.raises(LensSkillsError, match=r"leave at= out"):
        parse_components(adapter, own, at="hook_resid_post")
