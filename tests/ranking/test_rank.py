"""Every method equals what SciPy, scikit-learn or straight-line NumPy and PyTorch make of it."""

from importlib import import_module
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, mutual_info_score, roc_auc_score

import lens_skills as ls
from lens_skills.activations import parse_metric, stream
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import attribution
from lens_skills.models.partial_forward import CannotResume
from lens_skills.ranking import rank
from lens_skills.ranking.methods import METHODS, PENALTY, LayerActivations, find_methods
from lens_skills.ranking.rank import Rankings, rank_all
from lens_skills.ranking.target_statistics import ClassSums, Target, target_of
from lens_skills.soft_prompts import initial_prompt
from tests.ranking.conftest import N_LAYERS, WIDTH, Plain

# Its name in the package is the function's.
rank_module = import_module("lens_skills.ranking.rank")

GRADIENTS = ("taylor", "gradient", "prediction")
PLURAL, PLACE, DIGIT = "label:plural", "label:place", "covariate:digit"


def all_of(model: Any, task: ls.Task, metric: Any, methods: Any, **options: Any) -> Rankings:
    """The rankings of several methods."""
    return rank_all(
        ActivationReader(model, task, purpose="ranked"),
        target_of(model, task, metric),
        methods,
        **options,
    )


def stored(model: Any, task: ls.Task, at: str = "mlp.hook_post") -> np.ndarray:
    """The activations a pass reads, as they come, ``[row, layer * neuron]``."""
    rows = np.zeros((len(task), N_LAYERS * WIDTH))
    for batch in stream(model, task, at=at):
        rows[batch.index.numpy()] = batch.activations.flatten(1).double().numpy()
    return rows


def column(task: ls.Task, name: str) -> np.ndarray:
    return np.array([example.column(name) for example in task])


def check(found: torch.Tensor, wanted: Any, tolerance: float = 1e-8) -> None:
    np.testing.assert_allclose(found.numpy(), np.asarray(wanted), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def x(tiny: Any, nouns: ls.Task) -> np.ndarray:
    return stored(tiny, nouns)


def test_what_is_read_is_what_plain_pytorch_computes(
    tiny: Any, nouns: ls.Task, plain: Plain, x: np.ndarray
) -> None:
    np.testing.assert_allclose(x, plain.activations(nouns, "post"), atol=1e-4)
    gates = stored(tiny, nouns, "mlp.hook_pre")
    np.testing.assert_allclose(gates, plain.activations(nouns, "gate"), atol=1e-4)


@pytest.mark.parametrize("name", ["plural", "digit"])
def test_pearson(tiny: Any, nouns: ls.Task, x: np.ndarray, name: str) -> None:
    metric = {"plural": PLURAL, "digit": DIGIT}[name]
    wanted = [stats.pearsonr(unit, column(nouns, name)).statistic for unit in x.T]
    check(rank(tiny, nouns, metric).score, wanted)


def test_mean_difference(tiny: Any, nouns: ls.Task, x: np.ndarray) -> None:
    high = column(nouns, "plural") == 1
    a, b = x[high], x[~high]
    pooled = ((len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)) / (len(x) - 2)
    wanted = (a.mean(0) - b.mean(0)) / np.sqrt(pooled)
    check(rank(tiny, nouns, PLURAL, method="smd").score, wanted)


@pytest.mark.parametrize(("metric", "name"), [(PLURAL, "plural"), (PLACE, "place")])
def test_f(tiny: Any, nouns: ls.Task, x: np.ndarray, metric: str, name: str) -> None:
    found = rank(tiny, nouns, metric, method="f").score
    classes = column(nouns, name)
    check(found, [stats.f_oneway(*(u[classes == c] for c in np.unique(classes))).statistic
                  for u in x.T])  # fmt: skip
    check(found, f_classif(x, classes)[0])


@pytest.mark.parametrize(("metric", "name"), [(PLURAL, "plural"), (PLACE, "place")])
def test_probeless(tiny: Any, nouns: ls.Task, x: np.ndarray, metric: str, name: str) -> None:
    classes = column(nouns, name)
    means = [x[classes == each].mean(0) for each in np.unique(classes)]
    wanted = sum(np.abs(a - b) for a, b in combinations(means, 2))
    check(rank(tiny, nouns, metric, method="probeless").score, wanted)


@pytest.mark.parametrize(("metric", "name"), [(PLURAL, "plural"), (PLACE, "place")])
def test_information(tiny: Any, nouns: ls.Task, x: np.ndarray, metric: str, name: str) -> None:
    wanted = []
    for unit in x.T:
        edges = np.linspace(unit.min(), unit.max(), 11)
        bins = np.clip(np.digitize(unit, edges[1:-1]), 0, 9)
        wanted.append(mutual_info_score(bins, column(nouns, name)) / np.log(2))
    check(rank(tiny, nouns, metric, method="information").score, wanted)


def test_auroc(tiny: Any, nouns: ls.Task, x: np.ndarray) -> None:
    high = column(nouns, "plural") == 1
    found = rank(tiny, nouns, PLURAL, method="auroc")
    check(found.score, [roc_auc_score(high, unit) for unit in x.T])
    u = stats.mannwhitneyu(x[high], x[~high]).statistic
    check(found.score, u / (high.sum() * (~high).sum()))
    check(found.strength, np.abs(found.score.numpy() - 0.5))


def test_auroc_counts_ties_half() -> None:
    rows = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
    table = {"label:y": [0, 0, 1, 1]}["label:y"]
    assert roc_auc_score(table, rows[:, 0]) == 0.875
    auroc = METHODS["auroc"].of
    y = torch.tensor(table, dtype=torch.float64)
    target = Target("y", "binary", y, ("0", "1"), True, None)
    values = LayerActivations(rows, target, list("abcd"), torch.zeros(1, dtype=torch.bool), 0)
    assert auroc(values).tolist() == [0.875]


def test_predictivity(tiny: Any, nouns: ls.Task, x: np.ndarray) -> None:
    groups = np.array([example.group for example in nouns])
    names = sorted(set(groups))
    order = np.random.default_rng(3).permutation(len(names))
    first = np.isin(groups, [names[i] for i in range(len(names)) if order[i] < len(names) / 2])
    y, wanted = column(nouns, "plural"), []
    for unit in x.T:
        fires = np.where(first, unit > unit[~first].mean(), unit > unit[first].mean())
        score = balanced_accuracy_score(y, fires)
        wanted.append(max(score, 1 - score))
    found = rank(tiny, nouns, PLURAL, method="predictivity", seed=3)
    check(found.score, wanted)
    assert set(groups[first]).isdisjoint(groups[~first])


def objective(rows: np.ndarray, y: np.ndarray, w: np.ndarray, b: float) -> float:
    loss = np.logaddexp(0, -(2 * y - 1) * (rows @ w + b)).mean()
    return float(loss + PENALTY * np.abs(w).sum())


def test_l1_reaches_the_optimum(tiny: Any, nouns: ls.Task, x: np.ndarray) -> None:
    found = rank(tiny, nouns, PLURAL, method="l1").score.numpy()
    y = column(nouns, "plural")
    new = LogisticRegression().penalty == "deprecated"
    for layer in range(N_LAYERS):
        here = slice(layer * WIDTH, (layer + 1) * WIDTH)
        rows = (x[:, here] - x[:, here].mean(0)) / x[:, here].std(0)
        options: dict[str, Any] = {"l1_ratio": 1.0} if new else {"penalty": "l1"}
        other = LogisticRegression(
            **options, solver="saga", C=1 / (PENALTY * len(y)), tol=1e-8, max_iter=20_000
        ).fit(rows, y)
        w = np.nan_to_num(found[here])
        margins = rows @ w
        b = min(np.linspace(-3, 3, 601), key=lambda b: objective(rows, y, w, b))
        best = objective(rows, y, other.coef_[0], other.intercept_[0])
        assert objective(rows, y, w, float(b)) - best < 1e-3
        assert roc_auc_score(y, margins) == pytest.approx(
            roc_auc_score(y, rows @ other.coef_[0]), abs=1e-3
        )
        # At the optimum no gradient exceeds the penalty, and those chosen meet it.
        slope = rows.T @ (1 / (1 + np.exp(-(margins + b))) - y) / len(y)
        assert np.abs(slope).max() < PENALTY + 2e-3
        np.testing.assert_allclose(slope[w != 0], -PENALTY * np.sign(w[w != 0]), atol=2e-3)
    assert 0 < np.isfinite(found).sum() < found.size


@pytest.mark.parametrize(("metric", "name"), [(PLURAL, "plural"), (PLACE, "place")])
def test_lape(tiny: Any, nouns: ls.Task, metric: str, name: str) -> None:
    opened = stored(tiny, nouns, "mlp.hook_pre") > 0
    classes = column(nouns, name)
    rates = np.stack([opened[classes == each].mean(0) for each in np.unique(classes)])
    wanted = np.array([stats.entropy(unit) if unit.sum() else np.nan for unit in rates.T])
    bar = np.sort(rates.flatten())[round(rates.size * 0.95) - 1]
    above = (rates > bar).any(0) if (rates > bar).any() else (rates >= bar).any(0)
    found = rank(tiny, nouns, metric, method="lape")
    check(found.score, np.where(above, wanted, np.nan))
    assert found.order(1).item() == int(np.nanargmin(np.where(above, wanted, np.nan)))


def test_lape_reads_the_gate_and_not_the_product(tiny: Any, nouns: ls.Task) -> None:
    gate, product = (rank(tiny, nouns, PLURAL, method="lape", gate=on) for on in (True, False))
    assert not torch.equal(gate.score.isnan(), product.score.isnan())
    x, opened = stored(tiny, nouns), column(nouns, "plural") == 1
    rates = np.stack([(x[opened] > 0).mean(0), (x[~opened] > 0).mean(0)])
    kept = ~product.score.isnan().numpy()
    check(product.score[kept], [stats.entropy(unit) for unit in rates[:, kept].T])


@pytest.mark.parametrize("method", GRADIENTS)
def test_gradients(tiny: Any, nouns: ls.Task, plain: Plain, method: str) -> None:
    slopes, values, clean = [], [], []
    for example in nouns:
        with torch.enable_grad():
            seen, logits = plain.run(example)
            odds = plain.odds(example, logits)
            odds.backward()
        clean.append(odds.item())
        slopes.append(torch.cat([post.grad[0, -1].double() for post in seen["post"]]))
        values.append(torch.cat([post[0, -1].detach().double() for post in seen["post"]]))
    plain.model.zero_grad()
    slope, a = torch.stack(slopes).numpy(), torch.stack(values).numpy()
    each = (a.mean(0) - a) * slope
    wanted = {
        "taylor": np.abs(a * slope).mean(0),
        "gradient": slope.mean(0),
        "prediction": each.mean(0),
    }
    found = rank(tiny, nouns, "logit_diff", method=method)
    check(found.score, wanted[method], 1e-4)
    assert found.metric == "logit_diff"
    reader = ActivationReader(tiny, nouns, purpose="ranked")
    odds = parse_metric("logit_diff", nouns, asked="a test")
    whole = attribution.slopes_of(reader.adapter, nouns, odds, reader.site, position="last")
    check(whole.spread, each.std(0), 1e-4)
    assert whole.clean == pytest.approx(np.mean(clean), abs=1e-4)


def test_random_is_the_seed_s(tiny: Any, nouns: ls.Task) -> None:
    one, again, other = (
        rank(tiny, nouns, PLURAL, method="random", seed=seed).score for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert stats.kstest(one.numpy(), "uniform").pvalue > 0.01


def test_all_methods_at_once_equal_each_alone_and_read_once(
    tiny: Any, nouns: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = rank_module._read

    def counted(*args: Any) -> Any:
        passes.append(1)
        return real(*args)

    monkeypatch.setattr(rank_module, "_read", counted)
    odds = parse_metric("logit_diff", nouns, asked="a test")
    together = all_of(tiny, nouns, PLURAL, find_methods(METHODS), differentiated=odds)
    assert len(passes) == 1
    assert list(together.rankings) == list(METHODS)
    for name, ranking in together.rankings.items():
        alone = rank(
            tiny, nouns, "logit_diff" if METHODS[name].differentiates else PLURAL, method=name
        )
        np.testing.assert_array_equal(ranking.score.numpy(), alone.score.numpy())


def test_layers_that_do_not_fit_are_read_in_further_passes(
    tiny: Any, nouns: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = find_methods(["pearson", "auroc", "lape", "predictivity"])
    whole = all_of(tiny, nouns, PLURAL, chosen)
    monkeypatch.setattr(rank_module, "STORED", 4 * WIDTH * len(nouns) * 3)
    parts = all_of(tiny, nouns, PLURAL, chosen, rotation_seed=0)
    for name in whole.rankings:
        check(parts.rankings[name].score, whole.rankings[name].score, 1e-12)
    assert parts.statistics.rotated is not None


def test_a_rotated_direction_explains_what_it_explains(
    tiny: Any, nouns: ls.Task, x: np.ndarray
) -> None:
    from lens_skills.stats.rotations import haar_matrix

    # Fewer rows than are summed together: the scale is the standard deviation of them all.
    std = x.std(0).reshape(N_LAYERS, WIDTH)
    least = 0.01 * torch.from_numpy(std).median(dim=1, keepdim=True).values.numpy()
    x = x / np.maximum(std, least).ravel()
    turned = np.concatenate(
        [x[:, k * WIDTH : (k + 1) * WIDTH] @ haar_matrix(WIDTH, seed=5).double().numpy()
         for k in range(N_LAYERS)], axis=1,
    )  # fmt: skip
    for metric, name in ((PLURAL, "plural"), (DIGIT, "digit")):
        found = all_of(tiny, nouns, metric, find_methods(["pearson"]), rotation_seed=5)
        r = np.array([stats.pearsonr(unit, column(nouns, name)).statistic for unit in turned.T])
        assert found.statistics.rotated is not None
        check(found.statistics.rotated, r**2, 1e-4)
    found = all_of(tiny, nouns, PLACE, find_methods(["f"]), rotation_seed=5)
    assert found.statistics.rotated is not None
    f = f_classif(turned, column(nouns, "place"))[0]
    check(found.statistics.rotated, f * 2 / (f * 2 + len(x) - 3), 1e-4)


def test_a_neuron_that_does_not_vary_is_ranked_by_no_method(nouns: ls.Task, tiny: Any) -> None:
    same = ls.Task("same", [
        ls.Example(f"{i}", "Near the table 3 the key", answer=" is", foil=" are",
                   labels={"y": i % 2}) for i in range(8)
    ])  # fmt: skip
    found = rank(tiny, same, "label:y")
    assert found.n_ranked == 0
    assert len(found.top(5)) == 0
    assert bool(found.score.isnan().all())
    assert "192 neurons are not ranked" in repr(found)


def test_lape_never_ranks_what_fires_once(nouns: ls.Task) -> None:
    y = torch.tensor([0.0, 1.0] * 50, dtype=torch.float64)
    target = Target("y", "binary", y, ("0", "1"), True, None)
    fired = torch.stack([torch.full((40,), 20.0), torch.full((40,), 25.0)]).double()
    fired[:, 0] = torch.tensor([1.0, 0.0])  # once, in one class
    fired[:, 1] = torch.tensor([50.0, 2.0])  # always in one class, hardly in the other
    fired[:, 2] = torch.tensor([49.0, 49.0])
    fired[:, 3] = torch.tensor([49.0, 50.0])
    zeros = torch.zeros(40, dtype=torch.float64)
    size = torch.tensor([50.0, 50.0], dtype=torch.float64)
    sums = ClassSums(
        target, zeros, zeros, zeros, torch.zeros(2, 40).double(), 1.0, size, 100, fired, 40
    )
    score = METHODS["lape"].of(sums)
    assert score[0].isnan()
    assert METHODS["lape"].strength(score).argmax().item() == 1
    assert score[1].item() == pytest.approx(stats.entropy([1.0, 0.04]))


def test_a_soft_prompt_is_read_at_its_last_vector(tiny: Any, nouns: ls.Task) -> None:
    prompt = initial_prompt(tiny, n_tokens=3, seed=0)
    found = rank(tiny, nouns, PLURAL, prompt=prompt)
    rows = np.zeros((len(nouns), N_LAYERS * WIDTH))
    for batch in stream(tiny, nouns, prompt=prompt, position=-1):
        rows[batch.index.numpy()] = batch.activations.flatten(1).double().numpy()
    check(found.score, [stats.pearsonr(unit, column(nouns, "plural")).statistic for unit in rows.T])
    bare = rank(tiny, nouns, PLURAL)
    assert not np.allclose(found.score, bare.score, atol=1e-3)


@pytest.mark.parametrize("long", [False, True])
def test_whole_passes_give_the_same_gradients(
    tiny: Any, nouns: ls.Task, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    """Where the last columns cannot be run alone; with answers of one token, and of several."""
    some = ls.tasks.arithmetic("+", digits=(1, 1), n=40, seed=0)[:12] if long else nouns
    usual = [rank(tiny, some, "logit_diff", method=m) for m in GRADIENTS]
    asked: list[int] = []

    def cannot(*args: Any) -> Any:
        asked.append(1)
        raise CannotResume("a test")

    monkeypatch.setattr(attribution, "activations_and_gradients", cannot)
    for one in usual:
        found = rank(tiny, some, "logit_diff", method=one.method)
        scale = float(one.score.abs().max())
        torch.testing.assert_close(found.score, one.score, rtol=1e-4, atol=1e-5 * scale)
    assert asked
    if not long:
        with pytest.raises(LensSkillsError, match="has no gradient"):
            rank(tiny, some, "first_token_correct", method="taylor")
    assert all(parameter.grad is None for parameter in tiny.parameters())
