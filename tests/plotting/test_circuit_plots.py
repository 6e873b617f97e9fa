"""What the graph of a circuit and the curve of its faithfulness show, and that it can be read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import ArrowStyle, FancyArrowPatch

from lens_skills.circuits import Circuit, Curve, Edge, Faithfulness, Node, Totals
from lens_skills.circuits.faithfulness import Removal, Share
from lens_skills.errors import LensSkillsError
from lens_skills.plotting import Drawing
from lens_skills.plotting.circuit_plots import circuit_graph
from lens_skills.plotting.faithfulness_plot import faithfulness
from lens_skills.plotting.label_placement import Arrow, NodePlace, lay_out
from lens_skills.plotting.style import OPPOSES, SUPPORTS
from tests.plotting.probes import check_repeats, words
from tests.plotting.test_drawing import overlaps

NEURON = Node(28, "neuron", 907, "-1")
ANSWER = Node(30, "answer", None, "-1")


def head(layer: int, index: int, position: str, width: int = 1) -> Node:
    return Node(layer, "head", index, position, width)


def mlp(layer: int, position: str = "-1") -> Node:
    return Node(layer, "mlp", None, position)


def make_circuit(n: int = 18, *, start: Node = NEURON) -> Circuit:
    """Edges of both parts, over two positions; the weakest is not confirmed."""
    found = [
        (NEURON, ANSWER, "answer", "logit_diff", 0.86),
        (NEURON, mlp(29), "gate", "logit_diff", -0.12),
        (NEURON, mlp(29), "up", "logit_diff", 0.05),
        (NEURON, Node(29, "neuron", 1010, "-1"), "up", "logit_diff", 0.04),
        (mlp(29), ANSWER, "answer", "logit_diff", -0.07),
        (head(20, 3, "-1"), NEURON, "gate", "L28N907", -1.2),
        (head(20, 3, "-1"), NEURON, "up", "L28N907", -0.8),
        (head(24, 7, "-1"), NEURON, "gate", "L28N907", -0.5),
        (mlp(25), NEURON, "gate", "L28N907", -0.45),
        (mlp(27), NEURON, "up", "L28N907", -0.62),
        (mlp(27), NEURON, "gate", "L28N907", 0.31),
        (mlp(3, "-4"), head(20, 3, "-4", 3), "V", "L28N907", -0.7),
        (Node(-1, "token", None, "-4"), head(20, 3, "-4", 3), "V", "L28N907", -0.4),
        (Node(-1, "token", None, "-4"), mlp(3, "-4"), "gate", "L28N907", -0.3),
        (mlp(17), head(20, 3, "-1"), "Q", "L28N907", -0.1),
        (mlp(12), head(24, 7, "-1"), "Q", "L28N907", -0.09),
        (mlp(2), NEURON, "gate", "L28N907", -0.02),
        (mlp(1), NEURON, "gate", "L28N907", -0.001),
    ][:n]
    total = {"logit_diff": 0.93, "L28N907": -4.2}
    edges = [
        Edge(
            a, b, channel, target, effect, 0, effect=effect, share=effect / total[target],  # type: ignore[arg-type]
            low=effect - 0.3 * abs(effect), high=effect + 0.4 * abs(effect), p=0.001, q=0.002,
            p_random=0.01, verdict="confirmed" if abs(effect) > 0.01 else "negligible",
        )
        for a, b, channel, target, effect in found
    ]  # fmt: skip
    return Circuit(
        start=(start,),
        target=start.name,
        metric="logit_diff",
        unit="nats",
        edges=tuple(sorted(edges, key=lambda edge: -abs(edge.share or 0))),
        totals=(
            Totals(
                "L28N907",
                "upstream",
                "activation",
                5.1,
                -4.2,
                -4.6,
                -3.8,
                -3.3,
                -3.4,
                1.2,
                0.1,
                0.3,
            ),
            Totals("logit_diff", "downstream", "nats", 2.1, 0.93, 0.76, 1.12, 0.99, 1.0, 1.1),
        ),
        upstream=pd.DataFrame(),
        downstream=pd.DataFrame(),
        n_examples=64,
        n_groups=32,
        proposals="attribution",
        provenance={"model": "tiny", "task": "agreement"},
    )


def make_faithfulness(sizes: tuple[int, ...] = (1, 2, 4, 8, 20), n_random: int = 6) -> Faithfulness:
    random = np.random.default_rng(0)

    def curve(part: str, target: str) -> Curve:
        values = np.linspace(0.3, 1.1, len(sizes))
        shares = tuple(Share(v, v - 0.1, v + 0.15) for v in values.tolist())
        drawn = (0.05 * random.normal(size=(n_random, len(sizes)))).tolist()
        removal = Removal("L1MLP@-1 → L2N3@-1 up", Share(-0.2, -0.3, -0.1), 0.01, True)
        return Curve(
            part, target, "nats", 2.0, -1.0, sizes, shares, tuple(map(tuple, drawn)),
            Share(0.1, 0.0, 0.2), (removal,), False, 4321,
        )  # fmt: skip

    return Faithfulness(
        curves=(curve("upstream", "L28N907"), curve("downstream", "logit_diff")),
        n_examples=64,
        n_groups=32,
        n_unrun=1,
        epsilon=0.1,
        provenance={"model": "tiny", "task": "agreement", "start": "L28N907"},
    )


CASES: dict[str, Callable[..., Drawing]] = {
    "graph": lambda **options: circuit_graph(make_circuit(), **options),
    "graph, few": lambda **options: circuit_graph(make_circuit(), n=3, **options),
    "graph, one edge": lambda **options: circuit_graph(make_circuit(1), **options),
    "graph of the answer": lambda **options: circuit_graph(
        replace(make_circuit(), start=(ANSWER,), target="logit_diff"), **options
    ),
    "curve": lambda **options: faithfulness(make_faithfulness(), **options),
    "curve, one size": lambda **options: faithfulness(make_faithfulness((1,)), **options),
    "curve, nothing random": lambda **options: faithfulness(
        make_faithfulness(n_random=0), **options
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Callable[..., Drawing]:
    return CASES[request.param]


@pytest.mark.parametrize("width", ["column", "page"])
def test_no_text_is_cut_off_or_lies_on_another(case: Callable[..., Drawing], width: str) -> None:
    assert overlaps(case().styled(width=width).figure) == []


@pytest.mark.parametrize("name", ["graph", "curve"])
def test_the_same_result_gives_the_same_bytes_and_its_numbers(name: str, tmp_path: Path) -> None:
    check_repeats(CASES[name], tmp_path)


@pytest.mark.parametrize("name", ["graph", "curve"])
def test_exploratory_is_stamped_and_only_then(name: str) -> None:
    for exploratory in (False, True):
        texts = CASES[name](exploratory=exploratory).figure.texts
        assert any(text.get_gid() == "exploratory" for text in texts) == exploratory


def texts(drawing: Drawing) -> dict[str, str]:
    """What is written in the panel, and in which colour."""
    axis = drawing.figure.axes[0]
    return {text.get_text(): to_hex(text.get_color()).upper() for text in axis.texts}


def arrows(drawing: Drawing) -> dict[str, FancyArrowPatch]:
    axis = drawing.figure.axes[0]
    found = {str(patch.get_gid()): patch for patch in axis.patches}
    return {
        name.removeprefix("edge "): patch
        for name, patch in found.items()
        if name.startswith("edge ") and isinstance(patch, FancyArrowPatch)
    }


def test_every_edge_is_an_arrow_and_a_line_of_the_table() -> None:
    circuit = make_circuit()
    drawing = circuit_graph(circuit, n=30)
    assert drawing.frame["number"].tolist() == list(range(1, 18))
    written = texts(drawing)
    # Numbered within the target it was asked for, then within the answer, strongest first.
    assert drawing.frame["target"].tolist() == ["L28N907"] * 12 + ["logit_diff"] * 5
    for label in ("1 gate", "2 up", "3 V", "13"):
        assert label in written
    for ends in ("L20H3 → L28N907", "L3MLP → L20H3–5 at −4", "L28N907 → answer"):
        assert ends in written
    assert written["−1.20"] == written["1 gate"] == SUPPORTS
    assert written["+0.31"] == written["8 gate"] == written["13"] == OPPOSES
    assert {"[−1.56, −0.72]", "[+0.60, +1.20]", "[−0.026, −0.012]"} <= set(written)
    assert "change of L28N907 (activation)" in written
    assert "all its input corrupted: −4.20 [−4.60, −3.80], from +5.10" in written
    assert "in no tested edge: 21% [10%, 30%] of it" in written  # -4.2 in all, -3.3 tested
    assert "in no tested edge: −6% of it" in written


def test_the_sign_is_told_without_colour_and_the_width_is_the_strength() -> None:
    circuit = make_circuit()
    drawing = circuit_graph(circuit, n=30)
    found = arrows(drawing)
    assert set(found) == {str(edge) for edge in circuit.confirmed}
    for edge in circuit.confirmed:
        point = isinstance(found[str(edge)].get_arrowstyle(), ArrowStyle.CurveFilledB)
        assert point == ((edge.effect or 0) < 0)
    widths = [found[str(edge)].get_linewidth() for edge in circuit.confirmed]
    assert max(widths) == widths[0] == 2.6
    assert 0.6 <= min(widths) < 0.7
    legend = set(texts(drawing))
    assert {"raises its target", "lowers it", "within one head or MLP"} <= legend
    one_way = circuit_graph(make_circuit(1))
    assert "raises its target" not in texts(one_way)
    assert "within one head or MLP" not in texts(one_way)


def test_two_channels_between_two_nodes_are_two_arrows_apart() -> None:
    found = arrows(circuit_graph(make_circuit(), n=30))
    gate, up = (found[f"L27MLP@-1 → L28N907@-1 {name}"] for name in ("gate", "up"))
    for one, other in zip(gate._posA_posB, up._posA_posB, strict=True):
        assert np.hypot(*np.subtract(one, other)) > 0.05  # inches
    inner = [
        line.get_gid()
        for line in circuit_graph(make_circuit(), n=30).figure.axes[0].lines
        if str(line.get_gid()).startswith("inner")
    ]
    assert inner == ["inner L20H3-5@-4 L20H3@-1", "inner L29N1010@-1 L29MLP@-1"]


def test_a_slide_has_effects_at_its_arrows_and_no_table() -> None:
    written = texts(circuit_graph(make_circuit(), n=30).styled("talk"))
    assert written["gate −1.20"] == SUPPORTS
    assert written["gate +0.31"] == OPPOSES
    assert written["+0.86"] == OPPOSES
    assert not any(text.startswith(("change of", "[")) for text in written)


def test_layers_rise_and_positions_run_to_the_right() -> None:
    drawing = circuit_graph(make_circuit(), n=30)
    axis = drawing.figure.axes[0]
    at = {text.get_text(): text.get_position() for text in axis.texts}
    rising = ["token", "L2MLP", "L3MLP", "L12MLP", "L20H3–5", "L20H3", "L24H7", "L28N907", "L29MLP"]
    heights = [at[name][1] for name in rising]
    assert heights == sorted(heights)
    assert at["answer: logit difference"][1] > at["L29MLP"][1]
    assert at["token"][0] < at["L17MLP"][0]
    assert at["position −4"][0] < at["−1"][0]


def test_what_is_left_out_is_said() -> None:
    drawing = circuit_graph(make_circuit(), n=5)
    assert len(drawing.frame) == 5
    assert "17 of 18 tested edges confirmed, the 5 strongest drawn" in words(drawing)
    assert "L20H3–5: heads 3 to 5, which share one key and value" in words(
        circuit_graph(make_circuit())
    )
    assert "share one key" not in words(circuit_graph(make_circuit(4)))
    none = replace(
        make_circuit(), edges=tuple(replace(e, verdict=None) for e in make_circuit().edges)
    )
    with pytest.raises(LensSkillsError, match=r"no edge of L28N907 was confirmed \(18 were"):
        circuit_graph(none)


def test_boxes_never_touch_and_rows_that_are_too_wide_wrap() -> None:
    spots = (*(NodePlace(0, 0, 0.6, 0.2) for _ in range(7)), NodePlace(1, 0, 0.6, 0.2))
    arrows = tuple(Arrow(k, 7, 0.5, 0.1) for k in range(7))
    layout = lay_out(spots, arrows, width=2.0)
    lay_out.cache_clear()
    assert layout == lay_out(spots, arrows, width=2.0)
    for k, (x, y) in enumerate(layout.spots):
        assert 0.3 <= x <= 1.7
        for a, b in layout.spots[:k]:
            assert abs(x - a) >= 0.6 or abs(y - b) >= 0.2
    assert len({y for _, y in layout.spots}) == 4  # seven boxes, three to a row
    assert max(y for _, y in layout.spots[:7]) < layout.spots[7][1]


def test_the_curve_is_the_result() -> None:
    result = make_faithfulness()
    drawing = faithfulness(result)
    frame = drawing.frame
    mine = frame[frame["what"] == "circuit"].drop(columns="what").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, result.frame(), check_dtype=False)
    for axis, curve in zip(drawing.figure.axes, result.curves, strict=True):
        (drawn,) = [line for line in axis.lines if line.get_gid() == "circuit"]
        np.testing.assert_array_equal(drawn.get_xdata(), curve.sizes)
        np.testing.assert_array_equal(drawn.get_ydata(), [share.value for share in curve.shares])
        levels = [tuple(np.asarray(line.get_ydata()).tolist()) for line in axis.lines]
        assert {(0, 0), (1, 1)} <= set(levels)
        assert axis.get_xscale() == "log"
        random = [line for line in axis.lines if line.get_gid() == "random"]
        assert len(random) == len(curve.random)
        np.testing.assert_array_equal(np.asarray(random[0].get_ydata()), curve.random[0])
    text = words(drawing)
    assert "+1.10 [+1.00, +1.25] with 20 edges, p = 0.14" in text
    assert "6 random circuits of equal size" in text


def test_what_leaves_the_panel_is_marked_at_its_edge() -> None:
    result = make_faithfulness(n_random=0)
    shares = (*result.curves[0].shares[:-1], Share(7.25, 7.0, 7.5))
    far = replace(result, curves=(replace(result.curves[0], shares=shares), result.curves[1]))
    above, below = faithfulness(far).figure.axes
    assert above.get_ylim()[1] < 3
    assert "7.2" in [text.get_text() for text in above.texts]
    assert [line.get_marker() for line in above.lines].count("^") == 1
    assert [line.get_marker() for line in below.lines].count("^") == 0
