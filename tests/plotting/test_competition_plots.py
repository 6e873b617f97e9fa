"""The curve of what is kept shows its numbers; read-outs stand beside one another."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lens_skills.diagnostics import Dissection
from lens_skills.plotting import figures
from tests.plotting.probes import check_repeats, labels
from tests.plotting.test_drawing import overlaps


def make_dissection(shares: tuple[float, ...] = (0.01, 0.02, 0.04, 0.1)) -> Dissection:
    rows: list[dict[str, Any]] = []
    for share in shares:
        row: dict[str, Any] = {"share": share, "n_active": max(1, round(200 * share))}
        for arm, value in (("winners", 0.5 + 3 * share), ("random", 0.5 + share)):
            row |= {arm: value, f"{arm}_low": value - 0.06, f"{arm}_high": value + 0.05}
        row |= {"random_least": row["random"] - 0.02, "random_most": row["random"] + 0.02}
        difference = row["winners"] - row["random"]
        row |= {"difference": difference, "difference_low": difference - 0.1}
        rows.append(row | {"difference_high": difference + 0.1})
    table = pd.DataFrame(
        {
            "name": ["L0N1", "L1N2"], "wins": [1.0, 0.4], "cluster_size": [1, 9],
            "wpmi": ["plural", "not plural"], "wpmi_value": [0.6, 0.2], "wpmi_p": [0.01, 0.4],
            "information": ["plural", "noun = key"], "information_value": [0.9, 0.1],
            "information_p": [0.005, 0.7],
        }
    )  # fmt: skip
    return Dissection(
        curve=pd.DataFrame(rows), concepts=table, clean=0.95, clean_low=0.9, clean_high=0.98,
        none=0.48, none_low=0.4, none_high=0.55, wins=torch.full((2, 200), 0.04),
        cluster=torch.arange(200).remainder(8).expand(2, -1).contiguous(), layers=(0, 1),
        named_share=0.04, metric="accuracy", unit="share", n_explore=60, n_held=60, n_groups=20,
        n_random=3, n_permutations=199, site="mlp.hook_post", position="last",
        provenance={"model": "tiny", "task": "agreement"},
    )  # fmt: skip


@pytest.mark.parametrize("look", ["page", "paper", "talk"])
@pytest.mark.parametrize("shares", [(0.01, 0.02, 0.04, 0.1), (0.04,)])
def test_no_text_is_cut_off_or_lies_on_another(look: str, shares: tuple[float, ...]) -> None:
    assert overlaps(figures.dissection(make_dissection(shares)).styled(look).figure) == []


def test_the_curve_shows_its_numbers(tmp_path: Any) -> None:
    found = make_dissection()
    (axis,) = figures.dissection(found).figure.axes
    assert labels(axis) == ["all neurons", "none", "winners only", "random only"]
    lines = {line.get_label(): line for line in axis.lines}
    np.testing.assert_array_equal(lines["winners only"].get_ydata(), found.curve["winners"])
    np.testing.assert_array_equal(lines["random only"].get_ydata(), found.curve["random"])
    np.testing.assert_array_equal(lines["all neurons"].get_ydata(), [0.95, 0.95])
    check_repeats(lambda: figures.dissection(make_dissection()), tmp_path)
