"""The figures of the diagnostics: no text on another, the same bytes, and what each shows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.cluster.hierarchy import dendrogram

from lens_skills.diagnostics import (
    Memorisation,
    MinimalSet,
    Redundancy,
    Regulators,
    Segmentation,
    SparseProbe,
)
from lens_skills.diagnostics.redundancy import cluster_by
from lens_skills.diagnostics.regulators import NEITHER, REGULATOR, SKILL
from lens_skills.errors import LensSkillsError
from lens_skills.plotting import Drawing
from lens_skills.plotting.diagnostic_plots import (
    confidence_regulation,
    memorisation,
    minimal_set,
    redundancy,
    sparse_probe,
)
from lens_skills.plotting.segmentation_plot import segmentation
from lens_skills.stats.correlation import percentiles
from tests.plotting.probes import check_repeats, labels, words
from tests.plotting.test_drawing import overlaps

ABOUT = {"model": "SmolLM2-135M-Instruct", "task": "arithmetic"}


def make_probe(
    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32), *, chosen: int = 2, **changes: Any
) -> SparseProbe:
    rows: list[dict[str, Any]] = [{"k": 0, "bits": 300.0, "description": 300.0}]
    for k in ks:
        right = 1 - 0.35 / (1 + k)
        row: dict[str, Any] = {"k": k}
        for name in ("balanced_accuracy", "f1", "auroc"):
            row |= {name: right, f"{name}_low": right - 0.05, f"{name}_high": right + 0.02}
        row |= {"random": 0.5 + 0.01 * k**0.5, "random_low": 0.47, "random_high": 0.56}
        row |= {"control": 0.51, "selectivity": right - 0.51}
        row |= {"bits": 300 / (1 + k), "description": 300 / (1 + k) + 15 * k}
        rows.append(row)
    generator = torch.Generator().manual_seed(0)
    return replace(
        SparseProbe(
            neurons=torch.randint(0, 30, (max(ks), 2), generator=generator),
            table=pd.DataFrame(rows),
            chosen=chosen,
            n_candidates=46_080,
            metric="label:plural",
            shared_kinds=1.0,
            order_from="ranked on the training split",
            n_train=384,
            n_test=384,
            n_groups=32,
            site="mlp.hook_post",
            position="last",
            provenance=ABOUT,
        ),
        **changes,
    )


def make_minimal(n_layers: int = 6, *, width: int = 512, k: int = 8) -> MinimalSet:
    """Accuracy that rises to a plateau, and layers of which the first is at chance."""

    def row(scope: str, n: int, size: int) -> dict[str, Any]:
        right = 0.2 if scope == "layer 0" else 0.9
        found: dict[str, Any] = {"scope": scope, "n_neurons": n, "n_clusters": n // 2, "k": size}
        found |= {"k_low": max(size // 2, 1), "k_high": 2 * size}
        found |= {"share": size / n, "share_low": found["k_low"] / n, "share_high": 2 * size / n}
        found |= {"redundant": 1 - size / n, "accuracy": right, "low": right - 0.05}
        found |= {"high": right + 0.04, "all": 0.91, "all_low": 0.86, "all_high": 0.95}
        found |= {"random": 0.4, "random_low": 0.31, "random_high": 0.5, "difference": 0.5}
        found |= {"difference_low": 0.4, "difference_high": 0.6, "p_random": 0.05}
        return found | {"cv": 0.89, "cv_all": 0.9}

    curve = []
    for size in [2**power for power in range((n_layers * width // 2).bit_length())]:
        right = 0.92 - 0.5 / size
        curve.append({"k": size, "cv": right, "accuracy": right, "low": right - 0.06})
        curve[-1] |= {"high": min(right + 0.05, 1), "random": 0.92 - 0.7 / (1 + size / 40)}
        spread = 0.1 / (1 + size / 40)
        curve[-1] |= {f"random_{end}": curve[-1]["random"] + sign * spread
                      for end, sign in (("low", -1), ("high", 1))}  # fmt: skip
    layers = [
        row(f"layer {n}", width, 2 ** (n % 5)) for n in range(n_layers if n_layers > 1 else 0)
    ]
    return MinimalSet(
        neurons=torch.stack([torch.arange(k) % n_layers, torch.arange(k)], dim=1),
        scopes=pd.DataFrame([row("all layers", n_layers * width, k), *layers]),
        curve=pd.DataFrame(curve),
        metric="label:token",
        classes=("keyword", "name", "number", "operator", "string"),
        margin=0.01,
        method="elastic_net",
        reference="all",
        threshold=0.3,
        n_random=20,
        n_train=360,
        n_test=240,
        n_groups=24,
        site="mlp.hook_post",
        position="last",
        provenance=ABOUT,
    )


def make_redundancy(n: int = 14, *, threshold: float = 0.5, alike: float = 0.9) -> Redundancy:
    """Neurons in threes that share most of what they do, some with the other sign."""
    random = np.random.default_rng(0)
    common = random.normal(size=(-(-n // 3), 200)).repeat(3, axis=0)[:n]
    values = alike * common + (1 - alike) * random.normal(size=(n, 200))
    values[1::3] *= -1
    r = torch.from_numpy(np.corrcoef(values))
    cluster, tree = cluster_by(r, threshold)
    n_clusters = int(cluster.max()) + 1
    first = torch.tensor([int((cluster == c).nonzero()[0]) for c in range(n_clusters)])
    return Redundancy(
        neurons=torch.stack([torch.arange(n) % 30, 101 * torch.arange(n) % 1536], dim=1),
        cluster=cluster,
        sign=r[torch.arange(n), first[cluster]].sign().long(),
        representative=first,
        r=r,
        linkage=tree,
        threshold=threshold,
        n_examples=200,
        site="mlp.hook_post",
        position="last",
        provenance=ABOUT,
    )


def make_regulators(n: int = 6, *, null: bool = False) -> Regulators:
    """Three layers of a hundred neurons; the hits are of two of them, every word in turn."""
    random = np.random.default_rng(0)
    norms, variances = random.lognormal(1.4, 0.2, 300), random.normal(-2.8, 0.2, 300)
    if null:
        variances[105] = -15.0
    rows = torch.tensor([[1 + place % 2, 5 + 9 * (place // 2)] for place in range(n)])
    where = [100 * layer + neuron for layer, neuron in rows.tolist()]
    table = pd.DataFrame(
        {
            "name": [f"L{layer}N{neuron}" for layer, neuron in rows.tolist()],
            "layer": rows[:, 0],
            "neuron": rows[:, 1],
            "norm": norms[where],
            "log_variance": variances[where],
            "word": [(SKILL, REGULATOR, NEITHER)[place % 3] for place in range(n)],
        }
    )
    return Regulators(
        neurons=rows,
        table=table,
        norms=torch.from_numpy(norms),
        log_variances=torch.from_numpy(variances),
        layers=torch.arange(3).repeat_interleave(100),
        k=6,
        metric="confidence",
        neutral_metric="confidence",
        folded="W_U as the model holds it, times the final norm's gain; the mean over the "
        "vocabulary is removed",
        unigram_from="",
        n_examples=400,
        n_groups=299,
        n_effects=64,
        n_texts=60,
        n_controls=20,
        provenance=ABOUT,
    )


def make_memorisation(*, controls: int = 19, n: int = 12) -> Memorisation:
    """Neurons of two layers, of which the first three have few values that they share."""
    random = np.random.default_rng(0)
    h, mi = 4 + 0.3 * random.normal(size=n), 0.2 + 0.03 * random.normal(size=n)
    h[:3], mi[:3] = (1.0, 1.1, 1.3), (0.7, 0.66, 0.71)
    table = pd.DataFrame(
        {
            "name": [f"L{place % 2}N{place}" for place in range(n)],
            "layer": np.arange(n) % 2,
            "entropy": h,
            "information": mi,
        }
    )
    others = pd.DataFrame({"name": [], "layer": [], "entropy": [], "information": []})
    if controls:
        layer = np.arange(2 * controls) % 2
        others = pd.DataFrame(
            {
                "name": [f"L{at}N{100 + place}" for place, at in enumerate(layer)],
                "layer": layer,
                "entropy": 4 + 0.3 * random.normal(size=2 * controls),
                "information": 0.2 + 0.03 * random.normal(size=2 * controls),
            }
        )
        for kind in ("shortcut", "example"):
            p = np.where((np.arange(n) < 3) & (kind == "shortcut"), 0.01, 0.6)
            table = table.assign(**{f"{kind}_p": p, f"{kind}_q": np.minimum(4 * p, 1)})
    return Memorisation(
        table=table,
        controls=others,
        entropy=float(h.mean()),
        information=float(mi.mean()),
        random_entropy=torch.tensor(4 + 0.05 * random.normal(size=19)),
        random_information=torch.tensor(0.2 + 0.01 * random.normal(size=19)),
        n_bins=100,
        n_examples=300,
        provenance=ABOUT,
    )


def make_segmentation(*, known: bool = True, n: int = 3) -> Segmentation:
    """Texts of two pieces, the second found a token late; a line end and a long text."""
    words = [" She", " walks", " here", ".", "\n", "A:", " 3", " plus", " 4"] * 4
    rows, scores = [], []
    for text in range(n):
        for place, token in enumerate(words):
            cut, true = place >= 19, place >= 18
            rows.append(
                {
                    "text": text,
                    "place": place,
                    "token": token,
                    "skill": ("verbs", "sums")[cut],
                    "begins": place == 19,
                    "alone": ("verbs", "sums")[cut],
                    "true": ("verbs", "sums")[true] if known else "",
                    "true_begins": known and place == 18,
                }
            )
        scores.append(
            {"text": text, "n_tokens": len(words), "n_true": 1, "n_found": 1, "found": 1.0,
             "equal": 0.0, "random": 0.1, "argmax": 0.5, "accuracy": 35 / 36}
        )  # fmt: skip
    return Segmentation(
        neurons=torch.tensor([[0, 1], [1, 2]]),
        skills=("sums", "verbs"),
        tokens=pd.DataFrame(rows),
        scores=pd.DataFrame(scores if known else [], columns=list(scores[0])),
        random_f1=torch.tensor([0.2], dtype=torch.float64),
        price=12.5,
        prices=pd.DataFrame({"price": [0.0, 12.5], "f1": [0.4, 0.9]}),
        shortest=3,
        tolerance=1,
        n_fit=20,
        n_tune=10,
        selected=True,
        site="mlp.hook_post",
        provenance=ABOUT,
    )


CASES: dict[str, Callable[[], Drawing]] = {
    "memory": lambda: memorisation(make_memorisation()),
    "memory, no controls": lambda: memorisation(make_memorisation(controls=0, n=40)),
    "texts": lambda: segmentation(make_segmentation()),
    "texts, plain": lambda: segmentation(make_segmentation(known=False, n=1)),
    "minimal": lambda: minimal_set(make_minimal()),
    "minimal, 30 layers": lambda: minimal_set(make_minimal(30, width=1536, k=64)),
    "minimal, one layer": lambda: minimal_set(make_minimal(1)),
    "probe": lambda: sparse_probe(make_probe()),
    "probe, one k": lambda: sparse_probe(make_probe((1,), chosen=0)),
    "probe, many": lambda: sparse_probe(
        make_probe((1, 2, 3, 8, 64, 512, 4096), chosen=4096, metric="covariate:operation=minus")
    ),
    "tree": lambda: redundancy(make_redundancy()),
    "tree, two": lambda: redundancy(make_redundancy(2)),
    "tree, many": lambda: redundancy(make_redundancy(60, alike=0.6)),
    "scatter": lambda: confidence_regulation(make_regulators()),
    "scatter, null": lambda: confidence_regulation(make_regulators(null=True)),
    "scatter, one": lambda: confidence_regulation(make_regulators(1)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Callable[[], Drawing]:
    return CASES[request.param]


@pytest.mark.parametrize("look", ["page", "paper", "talk"])
def test_no_text_is_cut_off_or_lies_on_another(case: Callable[[], Drawing], look: str) -> None:
    assert overlaps(case().styled(look).figure) == []


@pytest.mark.parametrize("name", [name for name in CASES if "," not in name])
def test_the_same_result_gives_the_same_bytes_and_its_numbers(name: str, tmp_path: Path) -> None:
    check_repeats(CASES[name], tmp_path)


def test_the_curve_shows_the_scores_the_controls_and_the_choice() -> None:
    probe = make_probe()
    drawing = sparse_probe(probe)
    accuracy, bits = drawing.figure.axes
    assert labels(accuracy) == ["chance", "best k neurons", "random neurons", "control task"]
    table = probe.frame().iloc[1:]
    lines = {line.get_label(): line for line in accuracy.lines}
    for label, column in (
        ("best k neurons", "balanced_accuracy"),
        ("random neurons", "random"),
        ("control task", "control"),
    ):
        np.testing.assert_array_equal(lines[label].get_ydata(), table[column])
        np.testing.assert_array_equal(lines[label].get_xdata(), table["k"])
    assert set(lines["chance"].get_ydata()) == {0.5}
    band = accuracy.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == table["balanced_accuracy_low"].min()
    assert band[:, 1].max() == table["balanced_accuracy_high"].max()
    ring = bits.collections[0].get_offsets()
    np.testing.assert_allclose(ring, [[2, 130]])
    assert drawing.frame.loc[drawing.frame["chosen"], "k"].tolist() == [2]
    assert "plural (label) · few: 2 neurons" in words(drawing)


def test_the_tree_is_that_of_scipy_and_names_every_neuron() -> None:
    found = make_redundancy()
    drawing = redundancy(found)
    (axis,) = drawing.figure.axes
    wanted = dendrogram(found.linkage.numpy(), no_plot=True)
    names = [found.names[place] for place in wanted["leaves"]]
    assert drawing.frame["name"].tolist() == names
    texts = [label.get_text() for label in axis.get_yticklabels()]
    assert [text.removeprefix("−") for text in texts] == names
    against = drawing.frame["sign"] < 0
    assert [text.startswith("−") for text in texts] == against.tolist()
    assert against.any()
    bold = [label.get_text().removeprefix("−") for label in axis.get_yticklabels()
            if label.get_fontweight() == "bold"]  # fmt: skip
    assert sorted(bold) == sorted(found.representatives)
    heights = sorted(max(line.get_xdata()) for line in axis.lines[:-1])
    np.testing.assert_allclose(heights, np.sort(found.linkage[:, 2].numpy()))
    assert set(axis.lines[-1].get_xdata()) == {found.threshold}
    several = found.cluster.bincount()
    assert len(axis.patches) == int((several > 1).sum())
    assert f"{len(found)} clusters of 14 neurons" in words(drawing)


def test_a_tree_of_too_many_is_refused() -> None:
    with pytest.raises(LensSkillsError, match="cannot be told apart"):
        redundancy(make_redundancy(130))


def test_the_scatter_holds_every_neuron_and_marks_the_hits() -> None:
    found = make_regulators(null=True)
    drawing = confidence_regulation(found)
    (axis,) = drawing.figure.axes
    counts = drawing.frame["what"].value_counts()
    assert counts.to_dict() == {"of a hit's layer": 200, "neuron": 100, "hit": 6, "border": 2}
    assert sum(len(dots.get_offsets()) for dots in axis.collections) == 300
    hits = drawing.frame[drawing.frame["what"] == "hit"]
    assert hits["name"].tolist() == found.names
    assert hits["log_variance"].min() == -8  # an exact null space is drawn at the edge
    for word, marker in ((SKILL, "o"), (REGULATOR, "s"), (NEITHER, "x")):
        (line,) = [line for line in axis.lines if line.get_marker() == marker]
        rows = hits[hits["word"] == word]
        np.testing.assert_array_equal(line.get_xdata(), rows["norm"])
        np.testing.assert_array_equal(line.get_ydata(), rows["log_variance"])
        assert f"{word} (2)" in labels(axis)
    written = {text.get_text() for text in axis.texts} - {"L1", "L2"}
    assert written <= set(found.names)
    assert len(written) >= 4
    assert axis.get_xscale() == "log"


def test_the_corner_of_each_layer_is_what_the_flag_asks_for() -> None:
    """A hit beyond both lines of its layer is where `classify` sees it apart, and no other is."""
    found = make_regulators()
    drawing = confidence_regulation(found)
    corners = drawing.frame[drawing.frame["what"] == "border"].set_index("layer")
    (axis,) = drawing.figure.axes
    drawn = {tuple(line.get_xdata()[1:]) for line in axis.lines if line.get_linestyle() == "--"}
    for layer in (1, 2):
        norm, height = corners.loc[layer, ["norm", "log_variance"]]
        assert (norm, norm) in drawn
        mine = found.layers == layer
        for values, place, part in (
            (found.norms[mine], norm, 0.95),
            (found.log_variances[mine], height, 0.05),
        ):
            for value, share in zip(values, percentiles(values, values), strict=True):
                beyond = value > place if part > 0.5 else value < place
                assert bool(beyond) == bool(share >= part if part > 0.5 else share <= part)
    assert {"L1", "L2"} <= {text.get_text() for text in axis.texts}
    assert "outer 5 % of a layer" in labels(axis)


def test_dots_that_cover_one_another_are_one_and_counted() -> None:
    found = make_regulators()
    names = ("norms", "log_variances", "layers")
    many = replace(found, **{name: getattr(found, name).repeat(40) for name in names})
    cloud = confidence_regulation(many).frame.query("what != 'hit' and what != 'border'")
    assert len(cloud) <= 300
    assert cloud["n"].sum() == 12_000
    few = confidence_regulation(found).frame.query("what != 'hit' and what != 'border'")
    assert few["n"].tolist() == [1] * 300


def test_memory_shows_every_neuron_by_its_kind() -> None:
    found = make_memorisation()
    drawing = memorisation(found)
    (axis,) = drawing.figure.axes
    assert labels(axis) == [
        "random neuron",
        "random set",
        "neuron of the set (9)",
        "few values, shared (3)",
        "mean of the set",
    ]
    shown = {line.get_label(): line for line in axis.lines}
    carriers = found.table.set_index("name").loc[found.carriers()]
    shared = shown["few values, shared (3)"]
    assert sorted(shared.get_xdata()) == sorted(carriers["entropy"])
    assert len(shown["random neuron"].get_xdata()) == 38
    assert {text.get_text() for text in axis.texts} >= set(found.carriers())


def test_every_token_stands_on_the_colour_of_its_skill() -> None:
    cut = make_segmentation()
    drawing = segmentation(cut, n_texts=2)
    (axis,) = drawing.figure.axes
    tokens = cut.tokens.loc[cut.tokens["text"] < 2]
    grounds = axis.patches[::2]
    assert len(grounds) == len(axis.patches) / 2 == len(tokens)
    for column, rectangles in (("skill", grounds), ("true", axis.patches[1::2])):
        colours = pd.Series([patch.get_facecolor()[:3] for patch in rectangles])
        by_skill = colours.groupby(tokens[column].to_numpy()).agg(set)
        assert by_skill.map(len).tolist() == [1, 1]
        assert by_skill["sums"] != by_skill["verbs"]
    assert len(axis.lines) == 2  # where the second piece of either text begins
    written = "".join(text.get_text() for text in axis.texts)
    assert written == "".join(tokens["token"]).replace(" ", "").replace("\n", "⏎")
    with pytest.raises(LensSkillsError, match="6 skills"):
        segmentation(replace(cut, skills=tuple("abcdef")))
