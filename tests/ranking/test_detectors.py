"""CETT equals what is computed by hand, the probe equals scikit-learn's, and planted truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.verdict import NO_EFFECT
from lens_skills.models import as_adapter
from lens_skills.ranking import METHODS, compare_methods, detectors, own_answers, rank
from lens_skills.ranking.detectors import (
    SHARES,
    AnswerContributions,
    cett,
    fit_detector,
    h_neurons,
)
from lens_skills.ranking.own_answers import OwnAnswers, read_own_answers
from tests.models.families import build, tokenizer
from tests.planted import planted

PLURAL = "label:plural"


@pytest.fixture(scope="module")
def uneven(nouns: ls.Task) -> list[ls.Example]:
    """Prompts of unlike length, which a batch pads on the left."""
    longer = ("", "Tom said hello. ", "When Mary and John went to the store, ")
    return [
        ls.Example(f"{place} {e.id}", longer[place % 3] + e.prompt, answer=" is on the",
                   labels=e.labels, group=e.group)
        for place, e in enumerate(nouns[::3])
    ]  # fmt: skip


def by_hand(model: Any, example: ls.Example, n_tokens: int) -> tuple[list[int], Any, Any]:
    """Greedy tokens, and mean CETT on them and on the rest, from caches of unpadded passes."""
    tokens = model.to_tokens(example.prompt)
    n_prompt, written = tokens.shape[1], []
    ends = {model.tokenizer.eos_token_id}
    for _ in range(n_tokens):
        token = int(model(tokens)[0, -1].argmax())
        text = model.tokenizer.decode([token])
        if token in ends or ("\n" in text and written):
            break
        written.append(token)
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    _, cache = model.run_with_cache(tokens)
    shares = []
    for layer in range(model.cfg.n_layers):
        acts = cache[f"blocks.{layer}.mlp.hook_post"][0].double()
        out = cache[f"blocks.{layer}.hook_mlp_out"][0].double()
        norms = model.blocks[layer].mlp.W_out.detach().double().norm(dim=1)
        shares.append(acts.abs() * norms / out.norm(dim=1, keepdim=True))
    share = torch.cat(shares, dim=1).detach()
    first = 1 if int(tokens[0, 0]) == model.tokenizer.bos_token_id else 0
    return written, share[n_prompt:].mean(0), share[first:n_prompt].mean(0)


def compared_by_hand(model: Any, examples: Sequence[ls.Example]) -> None:
    found = read_own_answers(as_adapter(model), examples)
    limit = max(len(e.answer_tokens or ()) for e in _encoded(model, examples))
    assert len({len(e.prompt_tokens) for e in _encoded(model, examples)}) > 1
    for row, place in enumerate(found.kept.tolist()):
        written, answer, other = by_hand(model, examples[place], limit)
        assert list(found.tokens[row]) == written
        assert len(found.log_probabilities[row]) == len(written)
        np.testing.assert_allclose(found.answer[row], answer, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.other[row], other, rtol=1e-3, atol=1e-5)


def _encoded(model: Any, examples: Sequence[ls.Example]) -> list[Any]:
    from lens_skills.activations.forward import encode_examples

    return encode_examples(as_adapter(model), examples, answers=True)


def test_contributions_of_gated_neurons(tiny: Any, uneven: list[ls.Example]) -> None:
    compared_by_hand(tiny, uneven)


def test_contributions_of_plain_neurons_with_a_bias(uneven: list[ls.Example]) -> None:
    plain = ls.load_model(build("gpt2"), tokenizer=tokenizer())
    assert bool(plain.blocks[0].mlp.b_out.detach().any())
    compared_by_hand(plain, uneven[:6])


def simulated(n: int = 120, units: int = 300, signal: float = 0.0, seed: int = 0) -> Any:
    """Contributions of random neurons; those of neuron 7 are larger in class 0 by ``signal``."""
    random = np.random.default_rng(seed)
    high = torch.from_numpy(random.random(n) < 0.6)
    answer, other = (
        torch.from_numpy(random.gamma(4, size=(n, units))).float() * 0.01 for _ in range(2)
    )
    answer[:, :20] *= 2  # what answers are told by
    answer[:, 7] += signal * 0.02 * ~high
    own = OwnAnswers(
        torch.arange(n), ((1,),) * n, ((0.0,),) * n, answer, other, tuple(range(3)), units // 3
    )
    return AnswerContributions(own, high, [str(row // 2) for row in range(n)], 0)


def direct(values: AnswerContributions, penalty: float, others: bool) -> np.ndarray:
    """scikit-learn on the whole matrix, with the weights and the standardisation of METHODS."""
    low = ~values.high.numpy()
    rows = np.concatenate([values.own.answer.numpy(), values.own.other.numpy()]).astype(float)
    kinds = np.concatenate([low * 1, 2 + low * 1])
    weight = np.array([0.25 / (kinds == kind).sum() for kind in kinds])
    if not others:
        weight = np.where(kinds < 2, 2 * weight, 0)
    mean = weight @ rows
    standard = (rows - mean) / np.sqrt(weight @ (rows - mean) ** 2)
    truth = np.concatenate([low, np.zeros(len(low), dtype=bool)])
    probe = LogisticRegression(
        penalty="l1", solver="liblinear", C=1 / penalty, tol=1e-8, max_iter=10_000,
        intercept_scaling=1000,
    )  # fmt: skip
    probe.fit(standard, truth, sample_weight=weight)
    # The solution's own conditions: the loss pulls at each neuron by the penalty, or by less.
    chance = probe.predict_proba(standard)[:, 1]
    pull, used = (weight * (truth - chance)) @ standard, probe.coef_[0] != 0
    assert (abs(pull) <= penalty * 1.01).all()
    np.testing.assert_allclose(pull[used], penalty * np.sign(probe.coef_[0][used]), rtol=0.01)
    return -probe.coef_[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("others", [True, False])
def test_the_probe_is_that_of_scikit_learn_on_all_neurons(
    monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    monkeypatch.setattr(detectors, "_STEP", 8)  # neurons enter in several turns
    values = simulated(n=60, units=120, signal=1.5)
    found = fit_detector(values, others=others)
    wanted = direct(values, found.penalty, others)
    np.testing.assert_allclose(found.coefficients.numpy(), wanted, atol=0.02 * abs(wanted).max())
    assert 0 < int((found.coefficients != 0).sum()) < 100


def test_the_penalty_is_chosen_on_other_groups() -> None:
    from sklearn.model_selection import GroupKFold

    values = simulated(n=60, units=60, signal=1.5)
    found = fit_detector(values)
    assert min(found.losses, key=lambda penalty: found.losses[penalty]) == found.penalty
    kept = []
    real = detectors._Fit

    class Seen(real):
        def __init__(self, rows: Any, chosen: Any, seed: int) -> None:
            kept.append(set(chosen.tolist()))
            super().__init__(rows, chosen, seed)

    detectors._Fit = Seen
    try:
        fit_detector(values)
    finally:
        detectors._Fit = real
    folds = GroupKFold(5).split(np.zeros(60), groups=values.groups)
    assert kept == [*[set(inside) for inside, _ in folds], set(range(60))]


def test_a_neuron_that_tells_is_found_and_nothing_where_nothing_tells() -> None:
    values = simulated(signal=3)
    for score in (cett(values), h_neurons(values)):
        assert int(score.nan_to_num().abs().argmax()) == 7
        assert score[7] < 0  # it goes with class 0
    assert int((fit_detector(values, others=False).coefficients != 0).sum()) < 10
    assert fit_detector(values).log_odds(values.own.answer)[values.high].mean() > 0
    # Answers can be told from other tokens here; no neuron tells right from wrong.
    nothing = fit_detector(simulated(signal=0, units=3000))
    odds = nothing.log_odds(simulated(signal=0, units=3000, seed=1).own.answer)
    other = simulated(signal=0, units=3000, seed=1)
    from sklearn.metrics import roc_auc_score

    assert abs(roc_auc_score(other.high, odds) - 0.5) < 0.17  # three standard errors of 120 rows


def test_cett_is_a_standardised_difference() -> None:
    values = simulated(units=60)
    high, low = (values.own.answer[mask].double().numpy() for mask in (values.high, ~values.high))
    pooled = np.sqrt(
        ((len(high) - 1) * high.var(0, ddof=1) + (len(low) - 1) * low.var(0, ddof=1))
        / (len(high) + len(low) - 2)
    )
    np.testing.assert_allclose(cett(values), (high.mean(0) - low.mean(0)) / pooled, rtol=1e-6)
    values.own.answer[:, 3] = values.own.other[:, 3] = 0.5
    assert cett(values)[3].isnan()
    assert h_neurons(values)[3].isnan()


def test_a_detector_that_does_nothing_is_found_and_the_verdict_rejects_it(
    tiny_hooked: Any, nouns: ls.Task
) -> None:
    """It fires on what the model has answered already: no answer depends on it."""
    explore, rest = nouns.split(0.3, 0.7, seed=1)
    adapter = as_adapter(tiny_hooked)
    own = read_own_answers(adapter, nouns)
    read = [
        [*tiny_hooked.to_tokens(nouns[place].prompt)[0].tolist(), *tokens]
        for place, tokens in zip(own.kept.tolist(), own.tokens, strict=True)
    ]
    plural = [bool(nouns[place].labels["plural"]) for place in own.kept.tolist()]
    yes = [row for row, is_plural in zip(read, plural, strict=True) if is_plural]
    no = [row for row, is_plural in zip(read, plural, strict=True) if not is_plural]
    no += [row[:-1] for row in read]  # and not where the answer is chosen
    writes = torch.nn.functional.normalize(torch.ones(32), dim=0)
    with planted(tiny_hooked, 2, 11, yes, no, writes=0.5 * writes):
        for method in ("cett", "h_neurons"):
            found = rank(tiny_hooked, explore, PLURAL, method=method)
            assert found.names(1) == ["L2N11"], method
            assert found.score[2 * 48 + 11] > 0
        verdict = ls.verify(
            tiny_hooked, rest, ["L2N11"], do=ls.scale(by=0), delta=0.5,
            controls=ls.controls(sets=20, neurons=40), also=(), unrelated=False, pairs=False,
        )  # fmt: skip
    assert verdict["L2N11"].word == NO_EFFECT, verdict


def test_a_ranking_says_where_it_read(tiny: Any, nouns: ls.Task) -> None:
    found = rank(tiny, nouns, PLURAL, method="h_neurons", layers=[1, 2])
    assert found.position == "answer"
    assert sorted(found.layer.unique().tolist()) == [1, 2]
    assert found.n_examples <= len(nouns)
    assert 0 < found.n_ranked < 96
    assert "tokens of the model's own answer" in METHODS["cett"].about


def test_a_comparison_takes_them_where_they_are_asked_for(tiny: Any, nouns: ls.Task) -> None:
    explore, rest = nouns.split(0.3, 0.7, seed=0)
    options: dict[str, Any] = {"intervene": rest, "k": 3, "layers": [2], "n_random": 2}
    options["controls"] = ls.controls(neurons=21)
    named = compare_methods(tiny, explore, PLURAL, methods=["cett", "pearson"], **options)
    assert "cett" in named.methods
    usual = compare_methods(tiny, explore, PLURAL, **options)
    assert not any("cett" in name or "h_neurons" in name for name in usual.methods)


def refused(call: Any) -> str:
    with pytest.raises(LensSkillsError) as error:
        call()
    return str(error.value)


def test_what_cannot_be_answered(
    tiny: Any, nouns: ls.Task, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(examples: Any = nouns, **options: Any) -> str:
        return refused(lambda: rank(tiny, examples, PLURAL, method="h_neurons", **options))

    table = ls.capture(tiny, nouns, tmp_path / "table")
    assert "Give the model" in refused(lambda: rank(table, nouns, PLURAL, method="cett"))
    assert "Leave at= out" in asked(at="hook_resid_post")
    bare = [ls.Example(e.id, e.prompt, labels=e.labels, group=e.group) for e in nouns]
    assert "has none. Give examples with answers" in asked(bare)
    one = [ls.Example(e.id, e.prompt, e.answer, labels=e.labels, group="one") for e in nouns]
    assert "of one group" in asked(one)
    monkeypatch.setattr(own_answers, "free_bytes", lambda: 1000)
    assert "GB are free" in asked()


def test_a_model_that_ends_at_once_has_no_answers(
    tiny_hooked: Any, nouns: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(adapter: Any, encoded: Any, n_tokens: int) -> Any:
        return {item.index: ((), ()) if item.index % 2 else ((5,), (0.0,)) for item in encoded}

    monkeypatch.setattr(own_answers, "_write", some)
    found = rank(tiny_hooked, nouns, PLURAL, method="cett")
    assert found.n_examples == len(nouns) // 2
    monkeypatch.setattr(own_answers, "_write", lambda a, e, n: {i.index: ((), ()) for i in e})
    assert "ends each text at once" in refused(
        lambda: rank(tiny_hooked, nouns, PLURAL, method="cett")
    )
    low = {i for i, e in enumerate(nouns) if not e.labels["plural"]}
    monkeypatch.setattr(
        own_answers,
        "_write",
        lambda a, e, n: {i.index: ((), ()) if i.index in low else ((5,), (0.0,)) for i in e},
    )
    assert "0 of one class" in refused(lambda: rank(tiny_hooked, nouns, PLURAL, method="cett"))


def test_penalties_descend() -> None:
    assert list(SHARES) == sorted(SHARES, reverse=True)
