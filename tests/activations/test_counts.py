"""A count is the number of tokens above a threshold, wherever a mean or a maximum can stand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lens_skills as ls
from lens_skills.activations import parse_position, stream
from lens_skills.cli.app import app
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.plotting.words import position_words
from tests.activations.test_stream import EXAMPLES, gathered, keys_at, posts
from tests.planted import planted

FILLERS = ("key", "boy", "girl", "author", "doctor", "cabinet", "store", "table")
LAYER, NEURON = 0, 7


def clues(n: int, seed: int, prefix: str = "t") -> list[Example]:
    """Texts of twelve words of which zero to five are the clue, in any order."""
    random, found = np.random.default_rng(seed), []
    for place in range(n):
        many = place % 6
        words = [*(["are"] * many), *random.choice(FILLERS, 12 - many)]
        text = "The " + " ".join(random.permutation(words))
        found.append(Example(f"{prefix}{seed}-{place}", text, covariates={"clues": many}))
    return found


@pytest.mark.parametrize("theta", [0.0, 0.05, -0.1])
def test_it_equals_a_loop_over_tokens(tiny: Any, theta: float) -> None:
    with ls.config(batch_size=3):
        found = gathered(stream(tiny, EXAMPLES, position=ls.count(theta)), len(EXAMPLES))
    for example, counted in zip(EXAMPLES, found, strict=True):
        acts = posts(tiny, example.prompt)
        for layer, neuron in ((0, 0), (1, 17), (3, 47)):
            alone = sum(1 for value in acts[layer, 1:, neuron].tolist() if value > theta)
            assert counted[layer, neuron] == alone
        assert torch.equal(counted, (acts[:, 1:] > theta).sum(1).float())


def test_over_a_span_all_its_tokens_count(tiny_hooked: Any) -> None:
    some = [example for example in EXAMPLES if "The keys" in example.prompt]
    where = ls.count(0.0, ls.span("The keys", take="last"))
    for example, counted in zip(
        some, gathered(stream(tiny_hooked, some, position=where), len(some)), strict=True
    ):
        end = keys_at(tiny_hooked, example.prompt)
        expected = (posts(tiny_hooked, example.prompt)[:, end - 1 : end + 1] > 0).sum(1)
        assert torch.equal(counted, expected.float())
        assert counted.max() == 2


def test_the_text_says_the_same_as_the_position(tiny_hooked: Any, tmp_path: Path) -> None:
    metric, texts = "covariate:clues", clues(12, 0)
    options: dict[str, Any] = {"n_permutations": 0}
    one = ls.score(tiny_hooked, texts, metrics=metric, position=ls.count(0.05), **options)
    other = ls.score(tiny_hooked, texts, metrics=metric, position="count(0.050)", **options)
    assert one.positions == other.positions == ("count(0.05)",)
    assert torch.equal(one.r, other.r)
    table = ls.capture(tiny_hooked, texts, tmp_path / "table", position=ls.count(0.05))
    tabled = ls.score(table, texts, metrics=metric, position="count(0.05)", **options)
    assert torch.allclose(tabled.r, one.r, atol=1e-6)
    with pytest.raises(LensSkillsError, match=r"holds positions \['count\(0.05\)'\]"):
        ls.score(table, texts, metrics=metric, position=ls.count(0.06))
    ranked = ls.rank(tiny_hooked, texts, metric, position=ls.count(0.05))
    assert ranked.position == "count(0.05)"
    assert ranked.top(1).names == one[metric].top(1).names


def test_a_neuron_that_fires_once_per_clue_is_found_by_its_count(tiny_hooked: Any) -> None:
    (clue,) = tiny_hooked.tokenizer.encode(" are", add_special_tokens=False)
    others = [tiny_hooked.tokenizer.encode(f" {w}", add_special_tokens=False)[-1] for w in FILLERS]
    fit, unseen = clues(36, 1), clues(60, 2)
    with planted(tiny_hooked, LAYER, NEURON, [clue], others):
        where = ls.fit_count(tiny_hooked, fit, "covariate:clues")
        r = {
            str(position): ls.rank(tiny_hooked, unseen, "covariate:clues", position=position)
            for position in (where, ls.count(2.0), "mean", "max")
        }
    place = LAYER * tiny_hooked.cfg.d_mlp + NEURON
    squares = {name: float(ranking.score[place]) ** 2 for name, ranking in r.items()}
    assert r[str(where)].top(1).names == r["count(2)"].top(1).names == [f"L{LAYER}N{NEURON}"]
    assert squares[str(where)] > 0.99
    assert squares["count(2)"] > 0.9
    assert squares["max"] < 0.85
    undone = ls.rank(tiny_hooked, unseen, "covariate:clues", position=ls.count(2.0))
    assert not float(undone.score[place]) ** 2 >= 0.9  # NaN where it never fires


def test_the_fitted_threshold_is_the_best_of_its_candidates(tiny_hooked: Any) -> None:
    texts, quantiles = clues(18, 3), (0.2, 0.5, 0.8)
    options: dict[str, Any] = {"quantiles": quantiles, "steps": (0.4,), "layers": [1, 3]}
    where = ls.fit_count(tiny_hooked, texts, "covariate:clues", **options)
    acts = [posts(tiny_hooked, example.prompt)[:, 1:].numpy() for example in texts]
    y = [int(example.covariates["clues"]) for example in texts]
    assert where.thresholds is not None
    for layer, neuron in ((1, 0), (1, 30), (3, 11), (3, 47)):
        tokens = np.sort(np.concatenate([act[layer, :, neuron] for act in acts]))
        candidates = [tokens[int(q * len(tokens))] for q in quantiles]
        candidates += [tokens[len(tokens) // 2] * 0.6 + tokens[-1] * 0.4]
        r = [
            abs(np.corrcoef([(act[layer, :, neuron] > theta).sum() for act in acts], y)[0, 1])
            for theta in candidates
        ]
        best = candidates[int(np.argmax(np.round(r, 9)))]
        assert float(where.thresholds[layer][neuron]) == pytest.approx(float(best), abs=1e-5)
    again = ls.fit_count(tiny_hooked, texts, "covariate:clues", **options)
    assert (
        str(again)
        == str(where)
        != str(ls.fit_count(tiny_hooked, texts, "covariate:clues", layers=1))
    )


def test_a_threshold_chosen_here_is_refused_here(tiny_hooked: Any) -> None:
    fit, rest = clues(12, 4), clues(12, 5)
    where = ls.fit_count(tiny_hooked, fit, "covariate:clues")
    options: dict[str, Any] = {"metrics": "covariate:clues", "position": where, "n_permutations": 0}
    ls.score(tiny_hooked, rest, **options)
    with pytest.raises(LensSkillsError, match="fitted on 1 of these 13 examples and 1 of"):
        ls.score(tiny_hooked, [*rest, fit[0]], **options)
    with pytest.raises(LensSkillsError, match=r"was fitted at mlp\.hook_post in"):
        ls.score(tiny_hooked, rest, at="hook_resid_post", **options)
    with pytest.raises(LensSkillsError, match=r"give what ls\.fit_count"):
        parse_position(str(where))


def test_a_threshold_that_no_token_crosses_is_named(tiny_hooked: Any, tmp_path: Path) -> None:
    texts = clues(12, 6)
    options: dict[str, Any] = {"metrics": "covariate:clues", "n_permutations": 0}
    for act in (
        lambda: ls.score(tiny_hooked, texts, position=ls.count(1e6), **options),
        lambda: ls.rank(tiny_hooked, texts, "covariate:clues", position=ls.count(1e6)),
        lambda: ls.capture(tiny_hooked, texts, tmp_path / "table", position=ls.count(1e6)),
    ):
        with pytest.raises(LensSkillsError, match=r"count\(1000000\): no neuron .*Choose a lower"):
            act()
    assert not (tmp_path / "table").exists()
    most = torch.stack(gathered(stream(tiny_hooked, texts, position="max"), len(texts))).amax(0)
    quiet = most.flatten().argmin()
    layer, neuron = divmod(int(quiet), most.shape[1])
    theta = float(most.flatten().median())
    with pytest.raises(LensSkillsError, match=r"above the threshold of count\(.*\) at no token"):
        ls.redundancy(
            tiny_hooked, texts, [f"L{layer}N{neuron}", "L0N1", "L0N2"], position=ls.count(theta)
        )


@pytest.mark.parametrize("theta", ["x", True, None, float("nan"), float("inf")])
def test_no_number_is_no_threshold(theta: Any) -> None:
    with pytest.raises(LensSkillsError):
        ls.count(theta)


def test_what_cannot_be_counted_is_refused(tiny_hooked: Any, tmp_path: Path) -> None:
    texts = clues(12, 7)
    with pytest.raises(LensSkillsError, match="pools tokens, and a pooled number cannot be edited"):
        ls.sweep(
            tiny_hooked,
            texts,
            ["L0N1"],
            do=ls.ablate("zero"),
            metric="entropy",
            position=ls.count(0),
        )
    with pytest.raises(LensSkillsError, match="stand alone"):
        parse_position(["last", "count(0.5)"])
    for text in ("count", "count()", "count(a)", "count(0.5", "counts(1)", "count(nan)"):
        with pytest.raises(LensSkillsError, match="count"):
            parse_position(text)
    with pytest.raises(LensSkillsError, match="over must be a Span"):
        ls.count(0.5, "keys")  # type: ignore[arg-type]
    with pytest.raises(LensSkillsError, match="'keys' does not occur"):
        ls.rank(tiny_hooked, texts, "covariate:clues", position=ls.count(0.5, ls.span("keys")))
    fit: dict[str, Any] = {"model": tiny_hooked, "examples": texts, "metric": "covariate:clues"}
    table = ls.capture(tiny_hooked, texts, tmp_path / "table")
    same = [Example(e.id, e.prompt, covariates={"clues": 1}) for e in texts]
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": table}, "holds no activation at every token"),
        ({"quantiles": (), "steps": ()}, "between 0 and 1"),
        ({"steps": (0.5, 1.0)}, "between 0 and 1"),
        ({"examples": texts[:4]}, "4 examples are too few"),
        ({"examples": same}, "is 1 on all 12 examples"),
    )
    for wrong, words in cases:
        with pytest.raises(LensSkillsError, match=words):
            ls.fit_count(**(fit | wrong))


def test_from_the_shell(tiny_folder: Path, tmp_path: Path) -> None:
    def shell(*arguments: object) -> Any:
        with ls.config():
            return CliRunner().invoke(app, [str(part) for part in arguments])

    score = ("score", "agreement", "--metric", "label:plural", "--limit", 96, "--permutations", 19)
    end = ("--out", tmp_path / "run", "--model", tiny_folder)
    assert shell(*score, "--position", "count(0.01)", *end).exit_code == 0
    assert ls.load(tmp_path / "run" / "explore").positions == ("count(0.01)",)
    for wrong, words in (("count(x)", "as in count(0.5)"), ("cuont(1)", "no position")):
        end = ("--out", tmp_path / "other", "--model", tiny_folder)
        told = shell(*score, "--position", wrong, *end)
        assert told.exit_code == 1
        assert words in " ".join(told.output.split())


def test_figures_say_what_is_counted() -> None:
    assert position_words(str(ls.count(-0.5))) == "tokens above −0.5"
    assert position_words(str(ls.count(1, ls.span("keys")))) == "tokens above 1 in keys"
