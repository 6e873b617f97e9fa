"""Scores of several prompts compared, and predictivity, against straight-line oracles."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.errors import LensSkillsError
from lens_skills.scoring import Scores, compare_scores, predictivity, score
from tests.scoring.test_handmade import examples_with, factor_activations, handmade

N, SEEDS, POSITIONS, LAYERS, WIDTH = 80, 3, 4, 3, 20
TRUE = {(0, 3): 2.0, (1, 7): -2.0, (2, 11): 1.6}  # neuron: shift where the label is 1


class Case:
    """Three prompts on one task: other activations, the same true neurons at other positions."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        label = np.arange(2 * N) % 2
        self.label = label
        self.examples = examples_with(2 * N, labels={"y": label, "size": random.normal(size=2 * N)})
        self.acts, self.train, self.scores = [], [], []
        for seed in range(SEEDS):
            acts = np.stack(
                [factor_activations(random, 2 * N, LAYERS, WIDTH) for _ in range(POSITIONS)], axis=1
            )
            for (layer, neuron), shift in TRUE.items():
                at = (neuron + seed) % POSITIONS
                acts[:, at, layer, neuron] = random.normal(size=2 * N) + shift * label
            table = handmade(folder / str(seed), acts, self.examples)
            options = {"position": list(range(POSITIONS)), "n_controls": 0}
            train = score(
                table, self.examples[:N], metrics=["label:y"], n_permutations=0, **options
            )
            found = score(
                table,
                self.examples[N:],
                metrics=["label:y", "label:size"],
                n_permutations=99,
                baseline=train,
                **options,
            )
            self.acts.append(acts)
            self.train.append(train)
            self.scores.append(found)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("seeds"))


def straight(train: Sequence[np.ndarray], dev: Sequence[np.ndarray], y: np.ndarray) -> list[float]:
    """METHODS: b = mean on train; Acc of 1[a > b] on dev, classes alike; the better of it and its
    complement; the largest over positions; the mean over prompts.
    """
    found = []
    _, n_positions, n_layers, width = dev[0].shape
    for layer in range(n_layers):
        for neuron in range(width):
            by_prompt = []
            for one, other in zip(train, dev, strict=True):
                best = 0.0
                for position in range(n_positions):
                    column = one[:, position, layer, neuron]
                    b = sum(float(a) for a in column) / len(column)
                    right = {0: 0, 1: 0}
                    for a, truth in zip(other[:, position, layer, neuron], y, strict=True):
                        right[int(truth)] += int(float(a) > b) == truth
                    accuracy = (right[0] / (y == 0).sum() + right[1] / (y == 1).sum()) / 2
                    best = max(best, accuracy, 1 - accuracy)
                by_prompt.append(best)
            found.append(sum(by_prompt) / len(by_prompt))
    return found


def test_predictivity_is_the_mean_over_prompts_of_the_best_position(case: Case) -> None:
    found = predictivity(case.scores, "label:y")
    expected = straight(
        [acts[:N] for acts in case.acts], [acts[N:] for acts in case.acts], case.label[N:]
    )
    np.testing.assert_allclose(found.value, expected, rtol=0, atol=1e-9)
    assert found.by_seed.shape == (SEEDS, LAYERS * WIDTH)
    assert {tuple(row) for row in found.top(3).rows.tolist()} == set(TRUE)
    frame = found.frame()
    assert (frame["predictivity"].diff().dropna() <= 0).all()
    assert ((frame["lowest"] <= frame["predictivity"]) & (frame["predictivity"] <= 1)).all()
    per_layer = found.top_per_layer(0.1).rows
    assert per_layer[:, 0].bincount().tolist() == [2, 2, 2]
    assert {tuple(row) for row in per_layer.tolist()} >= set(TRUE)
    assert "mean over 3 prompts" in repr(found)
    with pytest.raises(LensSkillsError, match="between 0 and 1"):
        found.top_per_layer(0)


def test_predictivity_needs_a_baseline_and_two_classes(case: Case) -> None:
    with pytest.raises(LensSkillsError, match="no predictivity of 'label:size'"):
        predictivity(case.scores, "label:size")
    with pytest.raises(LensSkillsError, match="scores #0 hold no predictivity"):
        predictivity(case.train, "label:y")
    with pytest.raises(LensSkillsError, match="no metric 'correct'"):
        predictivity(case.scores, "correct")
    with pytest.raises(LensSkillsError, match="0 scores"):
        predictivity([], "label:y")
    with pytest.raises(LensSkillsError, match=r"these scores hold \d metrics"):
        predictivity(case.scores)


def test_comparison_is_what_a_loop_counts(case: Case) -> None:
    found = compare_scores(case.scores, "label:y", top=12)
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert (found.n_prompts, found.n_units, found.same_examples) == (SEEDS, LAYERS * WIDTH, True)
    names = [(layer, neuron) for layer in range(LAYERS) for neuron in range(WIDTH)]
    best = []
    for scores in case.scores:
        r = scores["label:y"].r.numpy()
        place = np.abs(r).argmax(axis=0)
        best.append(r[place, np.arange(r.shape[1])])
    for row, (i, j) in enumerate(combinations(range(SEEDS), 2)):
        one, other = np.abs(best[i]), np.abs(best[j])
        assert found.rank_r[row] == pytest.approx(stats.spearmanr(one, other).statistic)
        sets = [{names[k] for k in np.argsort(-strength)[:12]} for strength in (one, other)]
        assert found.shared[row] == len(sets[0] & sets[1])
        assert found.jaccard[row] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
        assert found.expected[row] == pytest.approx(12 * 12 / len(names))
        assert found.p[row] == pytest.approx(
            stats.hypergeom.sf(len(sets[0] & sets[1]) - 1, len(names), 12, 12)
        )
        by_layer = sum(
            sum(layer == k for layer, _ in sets[0])
            * sum(layer == k for layer, _ in sets[1])
            / WIDTH
            for k in range(LAYERS)
        )
        assert found.expected_by_layer[row] == pytest.approx(by_layer)
        bars = [case.scores[k]["label:y"].threshold for k in (i, j)]
        either = (one > bars[0]) | (other > bars[1])
        assert found.n_significant[row] == either.sum() > 0
        same = np.sign(best[i][either]) == np.sign(best[j][either])
        assert found.sign_agreement[row] == pytest.approx(same.mean())
    assert {tuple(row) for row in found.stable.tolist()} == set(TRUE)
    assert found.stable[0].tolist() in ([0, 3], [1, 7])
    frame = found.frame()
    assert frame["shared"].tolist() == found.shared.tolist()
    assert "passes 1 and 2: " in repr(found)
    assert "3 neurons significant with one sign in every prompt" in repr(found)


def test_noise_is_not_stable(case: Case) -> None:
    """Other direction: a metric that nothing follows shares what chance shares."""
    found = compare_scores(case.scores, "label:size", top=12)
    assert float(found.p.min()) > 0.01
    assert float(found.rank_r.abs().max()) < 0.5
    assert len(found.stable) == 0


def test_a_turned_neuron_is_not_stable(case: Case) -> None:
    column = case.scores[0].metrics.index("label:y")
    r = case.scores[0].r.clone()
    r[column] *= -1
    turned = [replace(case.scores[0], r=r), *case.scores[1:]]
    found = compare_scores(turned, "label:y", top=12)
    plain = compare_scores(case.scores, "label:y", top=12)
    assert len(found.stable) == 0
    torch.testing.assert_close(found.rank_r, plain.rank_r)
    assert float(found.sign_agreement[0]) == pytest.approx(1 - float(plain.sign_agreement[0]))


def test_without_a_null_there_are_no_signs(case: Case) -> None:
    bare = [replace(s, thresholds={**s.thresholds, "label:y": None}) for s in case.scores]
    found = compare_scores(bare, "label:y", top=5)
    assert found.n_significant.tolist() == [-1, -1, -1]
    assert bool(found.sign_agreement.isnan().all())
    assert "no null" in repr(found)
    assert "significant with one sign" not in repr(found)


def test_what_does_not_fit_is_refused(case: Case) -> None:
    one, other, _ = case.scores
    with pytest.raises(LensSkillsError, match="2 at least"):
        compare_scores([one], "label:y")
    with pytest.raises(LensSkillsError, match="given twice"):
        compare_scores([one, other, one], "label:y", top=5)
    with pytest.raises(LensSkillsError, match="choose 1 to 30"):
        compare_scores([one, other], "label:y", top=31)
    with pytest.raises(LensSkillsError, match=r"site is 'mlp\.hook_post' in #0"):
        compare_scores([one, replace(other, site="mlp.hook_pre")], "label:y", top=5)
    strange = replace(other, provenance={**other.provenance, "weights": "x"})
    with pytest.raises(LensSkillsError, match="the model"):
        compare_scores([one, strange], "label:y", top=5)
    with pytest.raises(LensSkillsError, match="hold other neurons"):
        compare_scores([one, replace(other, neuron=other.neuron.flip(0))], "label:y", top=5)
    elsewhere = replace(other, example_ids=tuple(reversed(other.example_ids)))
    assert "other examples per prompt" in repr(compare_scores([one, elsewhere], "label:y", top=5))
    marked: list[Scores] = [one, replace(other, exploratory=True)]
    assert compare_scores(marked, "label:y", top=5).exploratory
