"""Planted skill neurons cut a text where it was joined, decoys do not; what is refused."""

import copy
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import f_oneway, norm

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.diagnostics import Segmentation, segment
from lens_skills.diagnostics.labelled_texts import LabelledTokens, label_tokens
from lens_skills.diagnostics.segment import (
    FLOOR,
    _cut,
    _mean_f1,
    _moments,
    _read,
    _scores,
    _states,
    equal_cuts,
)
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.stats.segmentation import boundary_f1
from lens_skills.tasks import splice
from tests.planted import plant

MARKS = {"keys": " keys", "boys": " boys", "girls": " girls"}
COMMON = (" the", " on", " was", " here", " to", " near")
SKILL_NEURONS, DECOYS = ["L0N0", "L0N1", "L0N2"], ["L0N3", "L0N4", "L0N5"]


def texts(n: int, seed: int) -> list[list[tuple[str, str]]]:
    """Pieces of common words, of which every other is the skill's mark."""
    random_ = random.Random(seed)
    made = []
    for _ in range(n):
        pieces = []
        for skill in random_.sample(list(MARKS), 3):
            length = random_.randint(3, 7)
            common = "".join(random_.choice(COMMON) + MARKS[skill] for _ in range(length))
            pieces.append((skill, common))
        made.append(pieces)
    return made


@pytest.fixture(scope="module")
def planted_model(tiny: Any) -> Any:
    """Three neurons that each fire on one skill's mark; three on words that all skills share."""
    model = copy.deepcopy(tiny)

    def token(word: str) -> int:
        (found,) = model.tokenizer.encode(word, add_special_tokens=False)
        return int(found)

    words = [*MARKS.values(), *COMMON]
    fires_on = [*MARKS.values(), " the", " on", " was"]
    for neuron, word in enumerate(fires_on):
        others = [token(other) for other in words if other != word]
        plant(model, 0, neuron, [token(word)], others, strength=12.0)
    return model


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return {"texts": texts(12, 0), "fit": texts(12, 1), "tune": texts(8, 2)}


@pytest.fixture(scope="module")
def found(planted_model: Any, parts: dict[str, Any]) -> Segmentation:
    return segment(planted_model, **parts, neurons=SKILL_NEURONS, n_random=0)


def test_planted_neurons_find_the_boundaries_and_decoys_do_not(
    planted_model: Any, parts: dict[str, Any], found: Segmentation
) -> None:
    rows = found.frame().set_index("cuts")
    assert rows["f1"].to_dict()["found"] > 0.9
    assert rows.loc[["equal", "random", "argmax"], "gain_low"].min() > 0
    assert found.word == "boundaries found better than by equal length and by chance"
    assert found.scores["accuracy"].mean() > 0.9
    decoys = segment(planted_model, **parts, neurons=DECOYS, n_random=0)
    assert decoys.frame().set_index("cuts")["gain_low"].to_dict()["equal"] < 0
    assert "not found better" in decoys.word
    assert decoys.scores["accuracy"].mean() < 0.6


def test_scores_are_those_of_the_tokens(found: Segmentation) -> None:
    for row in found.scores.to_dict("records"):
        tokens = found.tokens.loc[found.tokens["text"] == row["text"]]
        assert row["accuracy"] == pytest.approx((tokens["skill"] == tokens["true"]).mean())
        assert (row["n_true"], row["n_found"]) == (
            tokens["true_begins"].sum(),
            tokens["begins"].sum(),
        )
        # A boundary is where the true skill changes: neighbours differ in this task.
        changes = tokens["true"].to_numpy()[1:] != tokens["true"].to_numpy()[:-1]
        assert (tokens["true_begins"].to_numpy()[1:] == changes).all()
        assert not tokens["true_begins"].iloc[0]
    assert "".join(words for _, words in found.segments(3)) == "".join(
        found.tokens.loc[found.tokens["text"] == 3, "token"]
    )


def test_the_truth_of_a_token_is_that_of_its_characters(planted_model: Any) -> None:
    pieces = [("keys", "The keys on the table"), ("boys", ". The boys"), ("girls", " was girls")]
    cut = segment(
        planted_model, [pieces], texts(8, 1), price=5.0, neurons=SKILL_NEURONS, n_random=0
    )
    at = 0
    ends = list(itertools.accumulate(len(words) for _, words in pieces))
    for row in cut.tokens.to_dict("records"):
        at += len(row["token"])
        piece = next(place for place, end in enumerate(ends) if at <= end)
        assert row["true"] == pieces[piece][0]
    assert "undecided" in cut.word
    assert (cut.price, cut.n_tune) == (5.0, 0)


def test_unknown_pieces_are_cut_without_a_score(
    planted_model: Any, parts: dict[str, Any], found: Segmentation
) -> None:
    plain = ["".join(words for _, words in pieces) for pieces in parts["texts"]]
    cut = segment(
        planted_model, plain, parts["fit"], tune=parts["tune"], neurons=SKILL_NEURONS, n_random=1
    )
    assert cut.segments(2) == found.segments(2)
    assert not len(cut.frame())
    assert len(cut.random_f1) == 0
    assert "[keys]" in repr(cut)


def test_neurons_by_skill_are_read_together(
    planted_model: Any, parts: dict[str, Any], found: Segmentation
) -> None:
    by_skill = {skill: [name] for skill, name in zip(MARKS, SKILL_NEURONS, strict=True)}
    together = segment(planted_model, **parts, neurons=by_skill, n_random=1)
    assert together.names == SKILL_NEURONS
    assert together.price == found.price
    assert 0 <= float(together.random_f1) <= 1


def test_the_neurons_chosen_are_those_of_largest_f(planted_model: Any, parts: Any) -> None:
    adapter = as_adapter(planted_model)
    fit = label_tokens(adapter, parts["fit"], 1)
    skills = tuple(sorted(MARKS))
    every = torch.cartesian_prod(torch.arange(4), torch.arange(48))
    values = torch.cat(_read(adapter, fit, every, "mlp.hook_post")).numpy()
    truth = np.array([skill for text in fit for skill in text.truth])
    wanted = f_oneway(*(values[truth == skill] for skill in skills), axis=0).statistic
    best = every[np.argsort(-wanted)[:5].copy()]
    chosen = segment(planted_model, **parts, k=5, n_random=0)
    assert chosen.neurons.tolist() == best.tolist()
    assert chosen.selected


def test_the_price_is_the_best_on_tune(found: Segmentation) -> None:
    best = found.prices["f1"].max()
    assert float(found.prices.set_index("price").loc[found.price, "f1"]) == best
    assert found.prices["f1"].iloc[-1] < 0.1  # at the end of the grid next to nothing is cut
    assert found.prices["price"].is_monotonic_increasing


def test_it_is_saved_and_read(found: Segmentation, tmp_path: Any) -> None:
    again = ls.load(found.save(tmp_path / "cut"))
    assert repr(again) == repr(found)
    assert again.tokens.equals(found.tokens)


def test_equal_cuts_are_of_equal_length() -> None:
    assert equal_cuts(10, 4) == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": [" the"]}, "1 tokens and a segment 3 or more"),
        ({"fit": [[("keys", " the keys on the keys")]]}, "one skill, 'keys'"),
        ({"texts": [[("cats", " the boys"), ("keys", " on keys")]]}, "'cats', which fit does not"),
        ({"neurons": ["L1N0"]}, "without variance"),
        ({"tune": ()}, "no price"),
        ({"tune": (), "price": -1.0}, "0 nats or more"),
        ({"texts": []}, "no list of texts"),
        ({"texts": "the keys"}, "no list of texts"),
        ({"fit": ["the keys"]}, "text 0 of fit"),
        ({"texts": [[("keys", "")]]}, "none of them empty"),
        ({"neurons": []}, "no neurons"),
        ({"neurons": None, "k": 10_000}, "k=10,000"),
        ({"neurons": None, "k": 0}, "1 is the least"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    planted_model: Any, parts: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    model = planted_model
    if changes.get("neurons") == ["L1N0"]:
        model = copy.deepcopy(planted_model)
        plant(model, 1, 0, direction=model.blocks[1].mlp.W_in[:, 0] * 0)
    with pytest.raises(LensSkillsError, match=message):
        segment(model, **({**parts, "neurons": SKILL_NEURONS, "n_random": 0} | changes))


def test_texts_that_were_fitted_on_are_refused(planted_model: Any, parts: dict[str, Any]) -> None:
    for name in ("fit", "tune"):
        shared = parts | {"texts": parts[name]}
        with pytest.raises(LensSkillsError, match=f"texts and {name} share"):
            segment(planted_model, **shared, neurons=SKILL_NEURONS)


def test_spliced_texts_are_made_of_the_examples() -> None:
    sums = ls.tasks.arithmetic("+")
    verbs = ls.tasks.agreement(n=64)
    tasks: dict[str, Any] = {"sums": sums, "verbs": verbs}
    few: dict[str, Any] = {"tasks": tasks, "n": 3}
    made = splice(tasks, 12, pieces=4, seed=1)
    known = {
        name: {f"{example.prompt}{example.answer}".strip() for example in task}
        for name, task in tasks.items()
    }
    used = [words.strip() for text in made for _, words in text]
    assert len(set(used)) == len(used) == 48
    for text in made:
        assert all(words.strip() in known[skill] for skill, words in text)
        assert all(one[0] != two[0] for one, two in itertools.pairwise(text))
        assert [words[0] == " " for _, words in text] == [False, True, True, True]
    assert splice(tasks, 12, pieces=4, seed=1) == made
    for changes, message in (
        ({"n": 1000}, "different examples of"),
        ({"pieces": 1}, "two pieces"),
        ({"tasks": {"sums": sums}}, "two tasks"),
    ):
        with pytest.raises(LensSkillsError, match=message):
            splice(**(few | changes))


@pytest.mark.parametrize(("price", "shortest"), [(1.5, 2), (0.0, 3)])
def test_the_cuts_are_the_cheapest_of_all_by_scipy(price: float, shortest: int) -> None:
    """Every segmentation of a text is tried, each skill with its own mean and spread."""
    random_ = np.random.default_rng(0)
    skills = ("calm", "wild")
    mean, spread = {"calm": 0.0, "wild": 0.4}, {"calm": 0.4, "wild": 1.5}

    def text(pieces: list[tuple[str, int]]) -> tuple[torch.Tensor, LabelledTokens]:
        truth = [skill for skill, length in pieces for _ in range(length)]
        rows = [[random_.normal(mean[s], spread[s]), random_.normal()] for s in truth]
        piece = [place for place, (_, length) in enumerate(pieces) for _ in range(length)]
        labelled = LabelledTokens(
            Example(id="x", prompt="x"), ("t",) * len(truth), tuple(piece),
            tuple(skill for skill, _ in pieces),
        )  # fmt: skip
        return torch.tensor(rows), labelled

    fit, (held, labelled) = text([("calm", 200), ("wild", 200)]), text([("calm", 6), ("wild", 5)])
    held[8, 0] = 0.0  # a calm token in a wild run
    cuts = _cut(
        {"fit": [fit[0]], "tune": [], "texts": [held]},
        {"fit": [fit[1]], "tune": [], "texts": [labelled]},
        skills, price, shortest, 1,
    )  # fmt: skip
    cost = np.zeros((2, len(held)))
    for state in (0, 1):
        own = fit[0][state * 200 : (state + 1) * 200].numpy()
        cost[state] = -norm.logpdf(held.numpy(), own.mean(0), own.std(0, ddof=1)).sum(1)
    ways = []
    for state in itertools.product((0, 1), repeat=len(held)):
        runs = [(value, len(list(part))) for value, part in itertools.groupby(state)]
        if min(length for _, length in runs) >= shortest:
            paid = sum(cost[one, place] for place, one in enumerate(state))
            ways.append((paid + price * (len(runs) - 1), state))
    best = min(ways)[1]
    assert tuple(_states(cuts.runs[0], len(held))) == best
    assert 0 < sum(best) < len(best)  # both skills
    (row,) = _scores([labelled], cuts, skills, 1, 0).to_dict("records")
    assert row["found"] == boundary_f1(
        [place for place in range(1, len(best)) if best[place] != best[place - 1]], [6]
    )


def test_a_neuron_that_hardly_varies_within_a_skill_has_the_least_spread() -> None:
    rows = torch.tensor([[0.0], [0.0], [1.0], [2.0]])
    labelled = LabelledTokens(Example(id="x", prompt="x"), ("t",) * 4, (0, 0, 1, 1), ("a", "b"))
    mean, spread = _moments([rows], [labelled], ("a", "b"))
    assert mean[:, 0].tolist() == [0.0, 1.5]
    assert spread[:, 0].tolist() == pytest.approx(
        [FLOOR * float(rows.std()), float(rows[2:].std())]
    )


def test_the_price_that_is_chosen_has_the_best_f1_without_the_first_token() -> None:
    """A text's first token is no boundary: uncut texts of one piece have an F1 of 1."""
    labelled = LabelledTokens(Example(id="x", prompt="x"), ("t",) * 4, (0, 0, 1, 1), ("a", "b"))
    assert _mean_f1([labelled], [[(0, 0), (2, 1)]], 1) == 1
    assert _mean_f1([labelled], [[(0, 0)]], 1) == 0
    whole = LabelledTokens(Example(id="x", prompt="x"), ("t",) * 4, (0, 0, 0, 0), ("a",))
    assert _mean_f1([whole], [[(0, 0)]], 1) == 1
