"""Concepts by two measures, winners of clusters, and what is kept when only they act."""

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.cluster.hierarchy import fcluster
from sklearn.metrics import mutual_info_score

import lens_skills as ls
from lens_skills.activations import evaluate, parse_metric
from lens_skills.data import Example
from lens_skills.diagnostics import Dissection, dissect
from lens_skills.diagnostics.competition import Competition, compete, cut
from lens_skills.diagnostics.concept_match import Concepts, match_concepts, soft_wpmi
from lens_skills.diagnostics.dissection import _row
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.feature_bank import FeatureBank
from lens_skills.models import as_adapter
from lens_skills.stats.correlation import average_linkage
from lens_skills.stats.effect_tests import cluster_interval
from lens_skills.stats.information import equal_width_codes
from lens_skills.stats.intervals import share_difference, share_interval
from tests.planted import planted

SMALL: dict[str, Any] = {"n_random": 1, "n_permutations": 39, "n_neurons": 3, "layers": [0]}


def flags(n: int, n_flags: int, seed: int) -> tuple[list[Example], FeatureBank]:
    """Examples with coins, and the bank of those alone."""
    random = np.random.default_rng(seed)
    coins = random.integers(0, 2, (n, n_flags))
    texts = [
        Example(
            f"e{row}", "x", covariates={f"coin {c}": int(coins[row, c]) for c in range(n_flags)}
        )
        for row in range(n)
    ]
    extra = {f"coin {c}": f"covariate:coin {c}" for c in range(n_flags)}
    bank = ls.feature_bank(texts, extra=extra)
    return texts, bank.only(*[name for name in extra if name in bank.names])


def test_soft_wpmi_is_its_formula() -> None:
    random = np.random.default_rng(0)
    values, holds, k = random.normal(size=(3, 12)), random.integers(0, 2, (12, 4)), 5
    found = soft_wpmi(torch.tensor(values), torch.tensor(holds).float(), k)
    for neuron in range(3):
        first = np.argsort(-values[neuron])[:k]
        for concept in range(4):
            likely = np.where(holds[:, concept] == 1, 0.95, 0.05)
            terms = [
                math.log(1 + weight * (likely[row] - 1))
                for weight, row in zip(np.linspace(0.998, 0.97, k), first, strict=True)
            ]
            alone = np.mean(terms) - math.log(likely.mean())
            assert float(found[neuron, concept]) == pytest.approx(alone, abs=1e-12)


def test_matches_are_those_of_scikit_learn_and_of_a_loop() -> None:
    texts, bank = flags(60, 6, 1)
    concepts = Concepts.of(bank, texts)
    random = np.random.default_rng(2)
    values = torch.tensor(random.normal(size=(5, 60)))
    found = match_concepts(values, concepts, [e.id for e in texts], k=6, n_permutations=19)
    table = bank.values(texts)
    for neuron in range(5):
        codes = equal_width_codes(values[neuron]).numpy()
        bits = {name: mutual_info_score(codes, table[name]) / math.log(2) for name in bank.names}
        best = max(bits, key=lambda name: bits[name])
        match = found["information"]
        assert float(match.value[neuron]) == pytest.approx(bits[best], abs=1e-9)
        named = concepts.names[int(match.place[neuron])]
        assert concepts.feature[int(match.place[neuron])] == best
        means = pd_means(values[neuron].numpy(), table[best].to_numpy())
        assert named == (best if means[1] > means[0] else f"not {best}")


def pd_means(values: np.ndarray, flag: np.ndarray) -> tuple[float, float]:
    return float(values[flag == 0].mean()), float(values[flag == 1].mean())


def test_who_knows_a_concept_is_matched_to_it_and_who_knows_none_is_not() -> None:
    """Over 40 data sets: error of the family of 10 neurons and 16 concepts, and power."""
    wrong = {"wpmi": 0, "information": 0}
    right = dict(wrong)
    for seed in range(40):
        texts, bank = flags(80, 8, seed)
        concepts = Concepts.of(bank, texts)
        random = np.random.default_rng(1000 + seed)
        values = random.normal(size=(11, 80))
        knows = bank.values(texts)["coin 3"].to_numpy()
        values[10] += 3.0 * knows
        groups = [e.id for e in texts]
        found = match_concepts(
            torch.tensor(values), concepts, groups, k=20, n_permutations=39, seed=seed
        )
        for name, match in found.items():
            wrong[name] += bool((match.p[:10] <= 0.05).any())
            right[name] += (
                concepts.names[int(match.place[10])] == "coin 3" and float(match.p[10]) <= 0.05
            )
    assert all(count <= 5 for count in wrong.values())  # P(> 5 of 40 at 5 %) = 1.4 %
    assert all(count >= 38 for count in right.values())


def test_a_tree_is_cut_into_as_many_clusters_as_asked() -> None:
    random = np.random.default_rng(0)
    r = np.corrcoef(random.normal(size=(12, 9)))
    tree = average_linkage(1 - np.abs(r))
    for size in (1, 2, 5, 11, 12):
        own, scipys = cut(tree, size).numpy(), fcluster(tree.numpy(), size, "maxclust")
        assert len(set(own.tolist())) == size
        assert ((own[:, None] == own) == (scipys[:, None] == scipys)).all()


def test_winners_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 10, 30, generator=generator)
    values[0, 4] = 3.0  # never varies, so that it never wins against another
    game = Competition.of(values, (0.3, 0.5))
    rows = torch.randn(4, 1, 10, generator=generator)
    for share, size in ((0.3, 3), (0.5, 5)):
        for layer in range(2):
            won = game.winners(layer, rows, share)
            cluster = game.cluster[share][layer].tolist()
            assert len(set(cluster)) == size
            assert won.sum(-1).eq(size).all()
            mean = values[layer].mean(1)
            std = values[layer].std(1, correction=0)
            for row in range(4):
                for one in range(size):
                    members = [n for n in range(10) if cluster[n] == one]
                    z = [
                        float((rows[row, 0, n] - mean[n]) / std[n]) if std[n] > 1e-6 else -math.inf
                        for n in members
                    ]
                    assert bool(won[row, 0, members[int(np.argmax(z))]])


def agreement(n: int = 48) -> ls.Task:
    return ls.tasks.few(ls.tasks.agreement(), n)


def test_what_runs_is_the_mean_but_for_those_kept(tiny_hooked: Any) -> None:
    """Against hooks of TransformerLens, one prompt at a time."""
    task = agreement(12)
    adapter, layers = as_adapter(tiny_hooked), (1, 3)
    metric = parse_metric("logit_diff", task, asked="a test")
    values = torch.randn(2, 48, 30, generator=torch.Generator().manual_seed(1))
    game = Competition.of(values, (0.1,))
    where: dict[str, Any] = {"layers": layers, "site": "mlp.hook_post", "position": "last"}
    everything = compete(
        adapter, task, metric, game, lambda layer, own, _: torch.ones_like(own).bool(), **where
    )
    clean = evaluate(tiny_hooked, task, [metric])["logit_diff"]
    torch.testing.assert_close(everything, clean, atol=1e-4, rtol=1e-4)
    for keep in (None, game.keep_winners(0.1)):
        found = compete(adapter, task, metric, game, keep, **where)
        for row, example in enumerate(task):
            assert example.answer is not None
            assert example.foil is not None
            tokens = tiny_hooked.to_tokens(example.prompt)
            yes, no = (
                tiny_hooked.tokenizer.encode(text, add_special_tokens=False)[0]
                for text in (example.answer, example.foil)
            )

            def hook(activation: Any, hook: Any, keep: Any = keep) -> Any:
                place = layers.index(hook.layer())
                own = activation[:, -1:].clone()
                new = game.mean[place].expand_as(own)
                if keep is not None:
                    new = torch.where(game.winners(place, own, 0.1), own, new)
                activation[:, -1:] = new
                return activation

            hooks = [(f"blocks.{layer}.mlp.hook_post", hook) for layer in layers]
            logits = tiny_hooked.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].detach()
            alone = float(logits[yes] - logits[no])
            assert float(found[row]) == pytest.approx(alone, abs=1e-3)


def test_as_many_random_neurons_are_kept_as_win_whatever_the_batch() -> None:
    game = Competition.of(torch.randn(2, 20, 30), (0.2,))
    keep = game.keep_random(0.2, seed=3)
    rows = torch.zeros(5, 1, 20)
    some = keep(1, rows, torch.arange(5))
    assert some.sum(-1).eq(4).all()
    assert torch.equal(keep(1, rows[:1], torch.tensor([3]))[0], some[3])
    assert not torch.equal(some[0], some[1])
    assert not torch.equal(keep(0, rows, torch.arange(5)), some)


def test_a_planted_neuron_gets_its_concept_and_coins_are_nobodys(tiny_hooked: Any) -> None:
    encode, random = tiny_hooked.tokenizer.encode, np.random.default_rng(0)
    words, texts = ("key", "boy", "girl", "author", "doctor", "table"), []
    coins = random.integers(0, 2, (80, 5)).tolist()
    for row in range(80):
        text = "The " + " ".join(random.choice(words, 6)) + (" are" if row % 2 else " is")
        labels = {"are": row % 2}
        texts.append(Example(str(row), text, answer=" key", foil=" boy", labels=labels))
    task = ls.Task("ends", texts)
    plural, singular = (encode(word, add_special_tokens=False) for word in (" are", " is"))
    extra: dict[str, Any] = {f"coin {c}": lambda e, c=c: coins[int(e.id)][c] for c in range(5)}
    extra["ends in are"] = "label:are"
    bank = ls.feature_bank(task, extra=extra)
    names = ["L0N7", *(f"L0N{n}" for n in range(20, 30))]
    with planted(tiny_hooked, 0, 7, plural, singular):
        found = dissect(tiny_hooked, task, bank, names, shares=(0.1,), **SMALL)
    table = found.frame()
    assert table["name"].tolist() == names
    for measure in ("wpmi", "information"):
        assert table.loc[0, measure] == "ends in are"
        assert table.loc[0, f"{measure}_p"] <= 0.05
        matched = table.loc[table[f"{measure}_p"] <= 0.05, measure]
        assert not matched.str.contains("coin").any()


@pytest.fixture(scope="module")
def found(tiny_hooked: Any) -> Dissection:
    return dissect(tiny_hooked, agreement(), shares=(0.04, 0.2), **SMALL)


def test_the_card_and_the_folder_hold_it_all(found: Dissection, tmp_path: Path) -> None:
    assert found.curve["n_active"].tolist() == [2, 10]
    assert found.named_share == 0.04
    assert len(found.frame()) == 3
    assert "winners - random" in repr(found)
    assert found.wins.sum().item() == pytest.approx(2)  # one winner of each cluster
    for row in found.curve.to_dict("records"):
        assert row["difference"] == pytest.approx(row["winners"] - row["random"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    for one, cluster in ((value, c) for c, value in enumerate(found.entropies.tolist())):
        members = found.wins[0][found.cluster[0] == cluster].numpy()
        if len(found.entropies) == 2:
            shares = members[members > 0]
            alone = -(shares * np.log2(shares)).sum() / np.log2(len(members))
            assert one == pytest.approx(alone)
    again = ls.load(found.save(tmp_path / "found"))
    assert repr(again) == repr(found)
    assert again.frame().equals(found.frame())
    with pytest.raises(LensSkillsError, match=r"no share 0\.5"):
        found.at(0.5)


def test_what_cannot_be_dissected_is_refused(tiny_hooked: Any, tmp_path: Path) -> None:
    task = agreement()
    table = ls.capture(tiny_hooked, task[:4], tmp_path / "table")
    rare = ls.feature_bank(task, extra={"first": lambda e: int(e.id == task[0].id)}).only("first")
    for wrong, words in (
        ({"shares": ()}, "above 0 and below 1"),
        ({"shares": (0.04, 1.0)}, "above 0 and below 1"),
        ({"shares": (-0.1,)}, "above 0 and below 1"),
        ({"shares": (0.999,)}, "makes each its own cluster"),
        ({"bank": FeatureBank(())}, "holds no features"),
        ({"bank": rare}, "tells these"),
        ({"model": table}, "cannot be edited"),
        ({"position": "mean"}, "cannot be edited"),
        ({"position": [-1, -2]}, "several tokens"),
        ({"task": task[:20]}, "20 of each are the least"),
        ({"neurons": "L9N1"}, "no neuron L9N1 here"),
        ({"neurons": ["L0N1", "L0N1"]}, "named twice"),
        ({"n_permutations": 5}, "5 draws cannot give"),
        ({"n_random": 0}, "the least"),
        ({"k": 1000}, "k=1000"),
    ):
        asked: dict[str, Any] = {"model": tiny_hooked, "task": task, **SMALL} | wrong
        with pytest.raises(LensSkillsError, match=words):
            dissect(**asked)


def test_one_neuron_can_be_named(tiny_hooked: Any) -> None:
    found = dissect(tiny_hooked, agreement(), None, "L0N3", shares=(0.1,), **SMALL)
    assert found.frame()["name"].tolist() == ["L0N3"]


def test_entropies_are_of_clusters_of_several_and_the_card_counts_the_others(
    found: Dissection,
) -> None:
    row = {"wpmi": "a", "wpmi_p": 0.06, "information": "b", "information_p": 0.04}
    made = replace(
        found,
        wins=torch.tensor([[1.0, 0, 1, 1 / 3, 1 / 3, 1 / 3]]),
        cluster=torch.tensor([[0, 0, 1, 2, 2, 2]]),
        concepts=pd.DataFrame([row | {"name": "L0N1", "wins": 0.5, "cluster_size": 2}]),
        curve=found.curve.assign(difference_low=[-0.1, 0.1], difference_high=0.3),
    )
    torch.testing.assert_close(made.entropies, torch.tensor([0.0, 1.0], dtype=torch.float64))
    card = repr(made)
    assert "3 clusters, 1 of one neuron; entropy of the wins inside the others 0.50" in " ".join(
        card.split()
    )
    assert "L0N1 wins 50%: 'b' (information, p 0.04)" in " ".join(card.split())
    shares = [line for line in card.splitlines() if line.lstrip()[:1].isdigit()]
    assert [line.rstrip().endswith("*") for line in shares] == [False, True]


def test_a_row_of_the_curve_is_that_of_a_loop() -> None:
    random, groups = np.random.default_rng(0), [f"g{row // 2}" for row in range(40)]
    winners = torch.tensor(random.integers(0, 2, 40)).double()
    draws = [torch.tensor(random.integers(0, 2, 40)).double() for _ in range(3)]
    arms = [(0.1, "winners", winners), *((0.1, "random", one) for one in draws)]
    others = [(0.2, "winners", 1 - winners), (0.2, "random", winners)]
    found, means = _row(0.1, [*arms, *others], groups), [float(one.mean()) for one in draws]
    assert found["random"] == pytest.approx(np.mean(means))
    assert (found["random_least"], found["random_most"]) == (min(means), max(means))
    assert found["difference"] == pytest.approx(float(winners.mean()) - np.mean(means))
    low, high = share_interval(winners[None], groups)
    assert (found["winners_low"], found["winners_high"]) == (float(low[0]), float(high[0]))
    change = (winners - torch.stack(draws).mean(0))[None]
    low, high = share_difference(change, groups)
    assert (found["difference_low"], found["difference_high"]) == (float(low[0]), float(high[0]))
    # What is no share has the bootstrap's ends, which may leave [0, 1].
    arms = [(share, arm, 3 * one - 0.5) for share, arm, one in arms]
    found = _row(0.1, arms, groups)
    for name, values in (("winners", arms[0][2]), ("difference", 3 * change[0])):
        low, high = cluster_interval(values[None], groups)
        assert found[f"{name}_low"] == pytest.approx(float(low[0]))
        assert found[f"{name}_high"] == pytest.approx(float(high[0]))
    none = torch.zeros(40).double()
    few = [(0.1, "winners", none), (0.1, "random", none.index_fill(0, torch.tensor([0]), 1.0))]
    found = _row(0.1, few, [str(row) for row in range(40)])
    assert 0 <= found["random_low"] <= found["random"] <= found["random_high"] <= 1
    assert found["winners_high"] > 0.05  # nothing seen is not nothing


def test_draws_differ_and_what_is_left_out_takes_its_default(
    tiny_hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seen = import_module("lens_skills.diagnostics.dissection"), []
    monkeypatch.setattr(
        module,
        "match_concepts",
        lambda *a, **asked: seen.append(asked) or match_concepts(*a, **asked),
    )
    asked = {**SMALL, "shares": (0.02, 0.05, 0.3), "metric": "logit_diff", "n_random": 2}
    found = dissect(tiny_hooked, agreement(96), **asked)
    assert (found.curve["random_least"] < found.curve["random_most"]).all()
    assert found.named_share == 0.05  # the closest to 4 %
    assert seen[0]["k"] == max(10, found.n_explore // 4) > 10
    dissect(tiny_hooked, agreement(48), **{**asked, "shares": (0.1,)})
    assert seen[1]["k"] == 10
    with pytest.raises(LensSkillsError, match="makes each its own cluster"):
        dissect(tiny_hooked, agreement(), **SMALL, shares=(0.1, 0.999))
