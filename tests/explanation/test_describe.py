"""Sentences on neurons: the planted one gets its feature back and scores, a decoy does not.

The endpoint is a local server that behaves like a language model, or like one that is broken.
"""

import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.activations.excerpts import Excerpt
from lens_skills.data import halves
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanations, explain, feature_bank
from lens_skills.explanation.conjunctions import SentenceReader
from lens_skills.explanation.describe import (
    DESCRIBE,
    JUDGE,
    Described,
    Neurons,
    _around,
    _asked,
    _end,
    _judged_rows,
    _null,
    _Scorer,
    contrasting,
    describe,
    read_sentence,
)
from lens_skills.generation.endpoint import GIVE_UP, Endpoint, Nonsense, endpoint
from tests.explanation.problems import LAYER, has_five, problems, prompts
from tests.local_server import Server
from tests.planted import planted, separating_direction

PLANTED, DECOY = f"L{LAYER}N5", f"L{LAYER}N9"
FIVE = "Fires where an operand is 5."
WORDS: dict[str, Any] = {"n_permutations": 0, "n_tokens": 1}


@contextmanager
def with_both(model: Any, task: Any) -> Iterator[Any]:
    """A neuron that fires where an operand is 5, and one that fires by a coin of each example."""
    draw = random.Random(0)
    coin = {example.id: draw.random() < 0.25 for example in task}
    with ExitStack() as stack:
        for neuron, holds in ((5, has_five), (9, lambda example: coin[example.id])):
            direction = separating_direction(model, LAYER, *prompts(model, task, holds))
            stack.enter_context(planted(model, LAYER, neuron, direction=direction))
        yield model


@pytest.fixture(scope="module")
def why(tiny: Any) -> Explanations:
    task = problems()
    with with_both(tiny, task):
        return explain(tiny, task, [PLANTED, DECOY], describer="features", **WORDS)


def test_a_planted_neuron_gets_its_feature_back_and_a_decoy_does_not(why: Explanations) -> None:
    one, decoy = why[PLANTED].described, why[DECOY].described
    assert one is not None
    assert decoy is not None
    assert one.sentence == FIVE
    assert one.auroc > 0.85  # the tiny model tells fives from others not quite
    assert one.above_null is True
    assert max(one.p, one.q) <= 0.05
    assert "operand is 5" not in decoy.sentence
    assert not decoy.above_null
    card = " ".join(repr(why).split())
    assert f"in words: {FIVE}" in card
    assert f"the sentence's AUROC {one.auroc:.2f} [{one.low:.2f}, {one.high:.2f}]" in card
    assert "above the shuffled sentences: other neurons' sentences" in card
    assert "by the feature bank, from the first half; judged by the feature bank" in card


def test_the_score_is_that_of_the_judges_answers(why: Explanations) -> None:
    from sklearn.metrics import roc_auc_score

    one, task = why[PLANTED], problems()
    described = one.described
    assert described is not None
    held = halves([example.group for example in task], seed=0)[1]
    assert why.answers["id"].tolist() == [task[row].id for row in held.tolist()]
    yes = why.answers[PLANTED] == "yes"
    assert yes.tolist() == [has_five(task[row]) for row in held.tolist()]
    assert described.auroc == pytest.approx(roc_auc_score(yes, one.activation[held]))
    assert (described.n_yes, described.n_no) == (yes.sum(), (~yes).sum())


def test_sentences_scores_and_answers_are_kept(why: Explanations, tmp_path: Path) -> None:
    again = Explanations.load(why.save(tmp_path / "why"))
    assert repr(again) == repr(why)
    assert again.descriptions.equals(why.descriptions)
    assert again.answers.equals(why.answers)
    for name in why:
        for old, new in zip(why[name].described.nulls, again[name].described.nulls, strict=True):
            assert torch.equal(old.scores, new.scores)
    table = why.descriptions.set_index("name")
    assert table.loc[PLANTED, "sentence"] == FIVE
    assert table.loc[PLANTED, "n_neurons"] == len(why[PLANTED].described.neurons.scores)
    assert FIVE in why.to_markdown()
    page = why.report(tmp_path / "report.html").read_text()
    assert FIVE in page
    assert "shuffled sentences" in page


# ── the law of the scores, by hand ───────────────────────────────────────────────────────────────


def by_hand(
    activations: torch.Tensor, others: torch.Tensor, **options: Any
) -> tuple[Described, Any, Any]:
    """`describe` of numbers that no model made, on the arithmetic problems."""
    task = problems()
    bank = feature_bank(task)
    values = bank.values(task)
    groups = [example.group for example in task]
    parts = halves(groups, seed=0)
    varies = [n for n in bank.names if all(values[n].iloc[p.numpy()].nunique() > 1 for p in parts)]
    bank = bank.only(*varies)
    settings: dict[str, Any] = {
        "describer": "features", "judge": "features", "n_texts": None, "position": "last", "seed": 0
    }  # fmt: skip
    names = tuple(f"L0N{k}" for k in range(len(activations)))
    made = describe(
        Neurons(names, (0,) * len(names), activations),
        Neurons((), (0,) * len(others), others),
        task, bank, values[varies], groups, parts, lambda wanted: [() for _ in wanted],
        **(settings | options),
    )  # fmt: skip
    return made, parts, bank


def noise(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, len(problems()))))


def test_both_nulls_are_those_of_a_loop() -> None:
    from sklearn.metrics import roc_auc_score

    task = problems()
    features = feature_bank(task).values(task)
    flags = ["an operand is 5", "a is odd", "the operation is plus", "b is 3", "an operand is 5"]
    columns = torch.tensor(features[flags].to_numpy(float).T)
    own = columns[:1] + 0.3 * noise(1, 1)
    others = columns + 0.3 * noise(5, 2)
    made, (_, held), bank = by_hand(own, others)
    one = made.descriptions["L0N0"]
    assert one.sentence == FIVE
    reader = SentenceReader(bank)
    values = features.iloc[held.numpy()].reset_index(drop=True)
    theirs = ["a is odd", "the operation is plus", "b is 3"]  # the fifth says what this one says
    expected = [
        roc_auc_score(reader.holds(reader.read(f"Fires where {name}."), values), own[0, held])
        for name in theirs
    ]
    np.testing.assert_allclose(one.sentences.scores, expected)
    truth = [has_five(task[row]) for row in held.tolist()]
    columns_null = [roc_auc_score(truth, row[held]) for row in others]
    np.testing.assert_allclose(one.neurons.scores, columns_null)
    assert one.sentences.p == 1 / 4
    assert one.neurons.p == (1 + sum(score >= one.auroc for score in columns_null)) / 6
    assert one.p == max(one.sentences.p, one.neurons.p)
    assert one.sentences.ceiling == pytest.approx(max(expected))


def test_noise_is_seldom_above_the_null_and_a_signal_often() -> None:
    task = problems()
    features = feature_bank(task).values(task)
    drawn = random.Random(0)
    names = [name for name in features if features[name].isin([0, 1]).all()]
    backs = [drawn.choice(names) for _ in range(40)]
    others = torch.tensor(features[backs].to_numpy(float).T) + 0.5 * noise(40, 3)
    made, *_ = by_hand(noise(120, 4), others)
    told = list(made.descriptions.values())
    assert sum(bool(one.above_null) for one in told) <= 4  # of 120
    p = np.array([one.p for one in told if one.p is not None])
    assert (p <= 0.05).sum() <= 4
    plus = torch.tensor(features["an operand is 5"].tolist())
    made, *_ = by_hand(plus * 2 + noise(30, 5), others)
    told = list(made.descriptions.values())
    assert sum(bool(one.above_null) for one in told) >= 26  # of 30
    assert sum(one.sentence == FIVE for one in told) >= 22


def test_of_a_neuron_that_fires_below_zero_the_lowest_end_is_told() -> None:
    task = problems()
    five = torch.tensor([float(has_five(example)) for example in task])
    made, *_ = by_hand(-4 * five[None] + 0.3 * noise(1, 6), noise(20, 7))
    one = made.descriptions["L0N0"]
    assert (one.sentence, one.end) == (FIVE, "lowest")
    assert one.auroc > 0.95


def test_what_a_describer_sees_is_of_the_first_half_alone() -> None:
    """Other activations on the held-out half change no sentence."""
    task = problems()
    five = torch.tensor([float(has_five(example)) for example in task])
    held = halves([example.group for example in task], seed=0)[1]
    own = five[None] + 0.3 * noise(1, 8)
    turned = own.clone()
    turned[:, held] = noise(1, 9)[:, held]
    first, second = (by_hand(each, noise(20, 7))[0] for each in (own, turned))
    assert second.descriptions["L0N0"].sentence == first.descriptions["L0N0"].sentence == FIVE
    assert not second.descriptions["L0N0"].above_null


# ── an endpoint ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("")
    server.script = [lambda handler: think(handler, server.seen[-1]["messages"])]
    yield server
    server.stop()


def think(handler: Any, messages: list[dict[str, str]]) -> None:
    """A model that knows fives: it says what strong texts have, and finds it in others."""
    system, asked = messages[0]["content"], messages[1]["content"]
    if system == DESCRIBE:
        strong = asked.split("Weak texts:")[0]
        lines = [line for line in strong.splitlines() if line[:1].isdigit()]
        fives = sum("5" in line.split(": ", 1)[1] for line in lines)
        handler.say("Fires where there is a 5." if fives > 5 else "Fires where there is a 3.")
    else:
        assert system == JUDGE
        sentence, text = asked.split("\n", 1)
        digit = sentence.split("a ")[1][0]
        handler.say("yes" if digit in text else "No.")


def ask(server: Server, **options: Any) -> Endpoint:
    settings = {"model": "m", "timeout": 5.0, "wait": 0.01, "retries": 1}
    return endpoint(server.url, **{**settings, **options})


def explained(tiny: Any, describer: Any, **options: Any) -> Explanations:
    task = problems()
    with with_both(tiny, task):
        settings = {"n_texts": 30, "n_others": 20, **WORDS, **options}
        return explain(tiny, task, [PLANTED, DECOY], describer=describer, **settings)


def test_an_endpoint_describes_and_judges(
    tiny_hooked: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORDS_KEY", "hush")
    writer = ask(server, api_key_env="WORDS_KEY", cache=tmp_path / "cache")
    why = explained(tiny_hooked, writer)
    one = why[PLANTED].described
    assert one.sentence == "Fires where there is a 5."
    assert one.auroc > 0.7
    assert len(why.answers) == 30
    assert (one.n_yes + one.n_no, one.n_unanswered) == (30, 0)
    assert len(one.neurons.scores) == 20
    assert len(one.sentences.scores) == 1  # the decoy's
    assert any("the smallest null has 1 shuffled sentence:" in note for note in why.notes)
    # What is shown: texts of the first half with their tokens; what is judged: the other half.
    task = problems()
    first, second = halves([example.group for example in task], seed=0)
    texts = {part: {task[row].prompt for row in rows.tolist()}
             for part, rows in (("first", first), ("second", second))}  # fmt: skip
    described, *judged = [seen["messages"][1]["content"] for seen in server.seen]
    shown = [eval(line.split(": ", 1)[1]) for line in described.splitlines() if line[:1].isdigit()]
    assert len(shown) == 16
    assert set(shown) <= texts["first"]
    tokens = json.loads(described.split("tokens: ")[1].splitlines()[0])
    assert "".join(token for token, _ in tokens) == shown[0]
    asked = {one.split("-----")[1].strip("\n") for one in judged if "Sentence: " in one}
    assert asked <= {text.strip("\n") for text in texts["second"]}
    assert not any("activation" in one for one in judged if "Sentence: " in one)
    # The key goes into the header and nowhere else.
    assert server.headers[0]["Authorization"] == "Bearer hush"
    why.save(tmp_path / "why")
    why.report(tmp_path / "why.html")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"hush" in path.read_bytes() for path in files)
    assert why.provenance["judge"]["model"] == "m"
    assert "by m, from the first half" in " ".join(repr(why).split())
    # Nothing is asked twice.
    before = len(server.seen)
    again = explained(tiny_hooked, ask(server, cache=tmp_path / "cache"))
    assert len(server.seen) == before
    assert again.descriptions.equals(why.descriptions)


def test_an_endpoint_that_goes_down_is_gone_on_with(tiny_hooked: Any, server: Server) -> None:
    alive = server.script[0]
    server.script = [alive] * 22 + [(503, {})]
    writer = ask(server, retries=0)
    why = explained(tiny_hooked, writer)
    one, other = why[PLANTED].described, why[DECOY].described
    assert one.sentence
    assert one.n_yes + one.n_no == 20
    assert one.n_unanswered == 10
    assert "HTTP 503" in one.note
    assert other.n_yes + other.n_no == 0
    assert "the judge answered for no text" in other.note
    assert len(server.seen) == 22 + GIVE_UP
    assert any("40 of 60 answers of the judge are missing" in note for note in why.notes)
    server.script = [alive]
    again = explained(tiny_hooked, writer)
    assert len(server.seen) == 22 + GIVE_UP + 40
    assert again[PLANTED].described.n_unanswered == 0
    assert not any("missing" in note for note in again.notes)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda handler: time.sleep(0.5), "Timeout"),
        ((401, {}), "HTTP 401 busy"),
        ("", "it said nothing"),
        ("...", "there is no word in '...'"),
        ("Fires where it rains. " * 30, "one sentence of at most 400 letters was asked for"),
        ("1. rain\n2. snow", "on 2 lines"),
    ],
)
def test_a_describer_that_says_nothing_of_use(
    tiny_hooked: Any, server: Server, answer: Any, said: str
) -> None:
    server.script = [answer]
    why = explained(tiny_hooked, ask(server, timeout=0.15))
    for name in (PLANTED, DECOY):
        described = why[name].described
        assert described.sentence == ""
        assert said in described.note
        assert described.auroc is None
    assert "no sentence: the describer gave none" in " ".join(repr(why).split())
    assert any("2 of 2 neurons have no sentence" in note for note in why.notes)
    assert why[PLANTED].best is not None  # the rest of the result is as without a describer


def test_nobody_there(tiny_hooked: Any) -> None:
    server = Server("")
    server.stop()
    why = explained(tiny_hooked, ask(server))
    assert "refused" in why[PLANTED].described.note


def test_a_key_that_an_endpoint_repeats_is_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_skills.generation.endpoint import NoAnswer

    monkeypatch.setenv("WORDS_KEY", "hush-hush")
    server.script = [lambda handler: handler.reply(b"no such key: hush-hush", 401, {})]
    with pytest.raises(NoAnswer, match=r"no such key: \[key\]"):
        ask(server, api_key_env="WORDS_KEY").answer([], str, "")
    told = endpoint("http://me:hush-hush@localhost/v1", model="m")
    assert "hush" not in f"{told!r} {told.report()}"
    with pytest.raises(LensSkillsError, match="api_key_env") as refused:
        endpoint("http://localhost/v1?key=hush-hush", model="m")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("judge", "note"),
    [
        (lambda sentence, text: "maybe", "the judge answered for no text: no score (neither yes"),
        (lambda sentence, text: None, "the judge answered for no text"),
        (lambda sentence, text: True, "the judge says yes of every text: no score"),
        (lambda sentence, text: "No!", "the judge says no of every text: no score"),
        (lambda sentence: "yes", "TypeError"),
        ("features", "no feature in the bank fits: the sentence has none of its names in it"),
    ],
)
def test_a_judge_that_says_nothing_of_use(tiny_hooked: Any, judge: Any, note: str) -> None:
    why = explained(tiny_hooked, lambda strong, weak: "Fires where the moon is full.", judge=judge)
    described = why[PLANTED].described
    assert described.sentence == "Fires where the moon is full."
    assert note in described.note
    assert (described.auroc, described.p, described.above_null) == (None, None, None)
    assert note.split(":")[0] in " ".join(repr(why).split())


def test_functions_describe_and_judge(tiny_hooked: Any) -> None:
    def describer(strong: Any, weak: Any) -> str:
        assert len(strong) == len(weak) == 8
        assert min(one.activation for one in strong) > max(one.activation for one in weak)
        if any("5" not in one.prompt for one in strong):
            raise ValueError("not me")
        return "  'a five' "

    def judge(sentence: str, text: str) -> Any:
        assert sentence == "a five"
        return None if "9" in text else np.bool_("5" in text)

    why = explained(tiny_hooked, describer, judge=judge)
    one = why[PLANTED].described
    nines = sum("9" in e.prompt for e in problems() if e.id in set(why.answers["id"]))
    assert one.n_unanswered == nines
    assert (why.answers[PLANTED] == "").sum() == nines
    assert one.auroc > 0.6
    assert why[DECOY].described.note == "the describer failed: ValueError: not me"
    assert (why.provenance["describer"], why.provenance["judge"]) == ("describer", "judge")


@pytest.mark.parametrize("said", [3, None, ["Fires"], b"Fires"])
def test_a_function_that_returns_no_text(tiny_hooked: Any, said: Any) -> None:
    why = explained(tiny_hooked, lambda strong, weak: said)
    assert f"{said!r} of type {type(said).__name__} is no text" in why[PLANTED].described.note


def test_refusals(tiny_hooked: Any, tmp_path: Path) -> None:
    task = problems()

    def refused(match: str, **options: Any) -> None:
        with pytest.raises(LensSkillsError, match=match):
            explain(tiny_hooked, task, [PLANTED], **WORDS, **options)

    refused("describer= is 'features', an endpoint", describer="gpt")
    refused("judge= is 'features', an endpoint", describer="features", judge=3)
    refused("there is none: say describer= too", judge="features")
    refused("n_texts= is how many texts are judged, 1 or more, not 0", describer="features",
            n_texts=0)  # fmt: skip
    bare = [replace(example, prompt="") for example in task]
    table = ls.capture(tiny_hooked, task, tmp_path / "table", layers=[LAYER], at="mlp.hook_post")
    with pytest.raises(LensSkillsError, match="some have no text"):
        explain(table, bare, [PLANTED], describer=len, **WORDS)


def test_a_table_is_described_as_the_model_is(tiny_hooked: Any, tmp_path: Path) -> None:
    task = problems()
    with with_both(tiny_hooked, task):
        table = ls.capture(tiny_hooked, task, tmp_path / "table", at="mlp.hook_post")
        whole = explain(tiny_hooked, task, [PLANTED], describer="features", **WORDS)
    told = explain(table, task, [PLANTED], describer="features", **WORDS)
    assert (
        told.descriptions["sentence"].tolist() == whole.descriptions["sentence"].tolist() == [FIVE]
    )
    assert told[PLANTED].described.auroc == pytest.approx(whole[PLANTED].described.auroc, abs=0.01)


def test_without_other_neurons_there_is_no_null(tiny_hooked: Any) -> None:
    task = problems()
    with with_both(tiny_hooked, task):
        why = explain(tiny_hooked, task, [PLANTED], describer="features", n_others=0, **WORDS)
    one = why[PLANTED].described
    assert one.auroc > 0.85
    assert (one.nulls, one.p, one.above_null) == ((), None, None)


def test_an_explanation_goes_on_with_the_endpoint_that_it_asked(
    tiny: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and called again in one session: what was asked in between is no other argument."""
    told, task = ask(server), problems()
    options = {"describer": told, "n_texts": 4, "n_others": 3, **WORDS}
    whole = explain(tiny, task, [PLANTED], **{**options, "describer": ask(server)})
    read, calls = Endpoint.answer, iter(range(9))

    def stopped(self: Endpoint, *asked: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return read(self, *asked)

    place = tmp_path / "work"
    with monkeypatch.context() as patched:
        patched.setattr(Endpoint, "answer", stopped)
        patched.setattr("lens_skills.checkpoints.SECONDS_BETWEEN", 0.0)
        with pytest.raises(KeyboardInterrupt, match="is kept in"):
            explain(tiny, task, [PLANTED], checkpoint=place, **options)
    assert told.counts["requests"] == 3
    other = {**options, "describer": ask(server, model="n")}
    with pytest.raises(LensSkillsError, match=r"describer's model: m there, n here"):
        explain(tiny, task, [PLANTED], checkpoint=place, **other)
    again = explain(tiny, task, [PLANTED], checkpoint=place, **options)
    assert again.answers.equals(whole.answers)
    assert again[PLANTED].described.auroc == whole[PLANTED].described.auroc


# ── its parts, by hand ───────────────────────────────────────────────────────────────────────────


def test_the_end_is_of_several_rows_and_not_of_the_largest() -> None:
    assert _end(torch.tensor([3.0, -2, -2, -2, -2, -2, 0, 0, 0, 0])) == "lowest"
    assert _end(torch.tensor([-3.0, 2, 2, 2, 2, 2, 0, 0, 0, 0])) == "highest"
    assert _end(torch.tensor([0.5])) == "highest"


def test_weak_texts_are_those_most_like_the_strong_and_no_text_twice() -> None:
    texts = ["a red cat", "the blue sea", "no", "a red cat", "a red dog", "a red cat"]
    activation = torch.tensor([3.0, 0.3, 0.2, 2.0, 0.1, 0.0])
    assert contrasting(activation, texts, 1) == ([0], [4])  # and not 5, which is strong


def test_tokens_are_those_up_to_what_was_read() -> None:
    tokens = tuple(f"t{k}" for k in range(200))
    whole = Excerpt("1", "x", 0.0, tokens, tuple(map(float, range(200))))
    assert [name for name, _ in _around(whole)] == [*tokens[-48:]]
    assert [name for name, _ in _around(replace(whole, read=100))] == [*tokens[64:112]]
    assert [name for name, _ in _around(replace(whole, read=3))] == [*tokens[:48]]
    assert len(_around(replace(whole, tokens=tokens[:5], values=whole.values[:5]))) == 5


def test_a_describer_reads_the_lowest_end_as_strong() -> None:
    seen: list[Any] = []

    def tell(strong: Any, weak: Any) -> str:
        seen.append((strong, weak))
        return "Fires where it rains."

    def excerpts(wanted: Any) -> Any:
        return [[Excerpt(str(k), "x", -1.5, ("a",), (-1.5,)) for k in some] for some in wanted]

    task = problems()
    signed = torch.arange(float(len(task)))[None]
    for end in ("lowest", "highest"):
        said = _asked(tell, signed, torch.arange(len(task)), task, excerpts, [end], "last")
        assert said == [("Fires where it rains.", "")]
    (low, _), (high, _) = seen
    assert {(one.activation, *one.values) for one in low} == {(1.5, 1.5)}
    assert {(one.activation, *one.values) for one in high} == {(-1.5, -1.5)}


def test_judged_texts_are_drawn_one_of_every_group_first() -> None:
    held, groups = torch.arange(10, 70), [f"g{row % 6}" for row in range(80)]
    first, second = (_judged_rows(held, groups, 12, None, seed).tolist() for seed in (0, 1))
    assert first != second
    for rows in (first, second):
        assert rows == sorted({*rows} & {*held.tolist()})
        assert [sum(groups[row] == f"g{k}" for row in rows) for k in range(6)] == [2] * 6
    assert torch.equal(_judged_rows(held, groups, None, "features", 0), held)
    assert len(_judged_rows(torch.arange(150), ["g"] * 150, None, print, 0)) == 100


def test_a_ceiling_of_few_is_their_largest_and_of_many_the_95th_percentile() -> None:
    scores = torch.arange(40).double() / 40
    few, many = _null("x", scores[:18], 0.5), _null("x", scores, 2.0)
    assert few is not None
    assert many is not None
    assert few.ceiling == float(scores[17])
    assert many.ceiling == pytest.approx(np.quantile(scores.numpy(), 0.95))
    assert many.p == pytest.approx(1 / 41)
    assert _null("x", scores[:0], 0.5) is None


def test_neurons_that_never_vary_are_in_no_null_and_few_groups_give_no_interval() -> None:
    rows, answers = torch.arange(40), [row % 2 == 0 for row in range(40)]
    own = torch.tensor([row % 2 == 0 for row in range(40)]).double()
    others = torch.stack([torch.ones(40).double(), own + torch.arange(40) / 100])
    judged = {"s": (answers, ""), "t": ([*answers[:20], *[None] * 20], "")}
    for groups, known in (([str(row) for row in range(40)], True), (["a", "b"] * 20, False)):
        one = _Scorer(rows, groups, judged).description(own, "s", "highest", ["s", "t"], others)
        assert one.auroc == 1.0
        assert len(one.neurons.scores) == 1
        assert (one.low is not None) is known
    two = _Scorer(rows, groups, judged).description(own, "t", "highest", [], others)
    assert (two.n_yes, two.n_no, two.n_unanswered) == (10, 10, 20)
    assert two.sentences is None


@pytest.mark.parametrize("said", ["", " .. ", "Fires.\nHere.", "x" * 401, 3, None])
def test_what_is_no_sentence(said: Any) -> None:
    with pytest.raises(Nonsense):
        read_sentence(said)
    assert read_sentence("“Fires  where it\trains.”") == "Fires where it rains."
