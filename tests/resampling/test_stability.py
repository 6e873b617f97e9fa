"""Halves of the groups and other wordings: chance is met by noise, and planted neurons return."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from sklearn.metrics import cohen_kappa_score

from lens_skills.circuits import Circuit, Edge, Node
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.resampling import Stability, stability
from lens_skills.saved import load
from lens_skills.tasks import Task, agreement

GROUPS, EACH, LAYERS, WIDTH, TOP = 40, 4, 3, 100, 20
UNITS = LAYERS * WIDTH
PER_LAYER = dict.fromkeys(range(LAYERS), WIDTH)
TRUE = ("L0N3", "L1N50", "L2N99")


def make_task(n_groups: int = GROUPS, each: int = EACH) -> Task:
    return Task(
        "t",
        [
            Example(id=f"{g}-{k}", prompt=f"{g} {k}", group=str(g), labels={"y": k % 2})
            for g in range(n_groups)
            for k in range(each)
        ],
    )


def activations(seed: int, planted: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Per example all units: noise of groups and of examples, and planted ones that follow y."""
    random = np.random.default_rng(seed)
    task, found = make_task(), {}
    common = {group: random.normal(size=UNITS) for group in task.groups}
    for example in task:
        row = common[example.group] + random.normal(size=UNITS)
        for name in planted:
            layer, unit = (int(part) for part in name[1:].split("N"))
            row[layer * WIDTH + unit] += 3 * float(example.labels["y"])
        found[example.id] = row
    return found


def strongest(acts: dict[str, np.ndarray], top: int = TOP) -> Callable[[Task], list[str]]:
    """An analysis: the units of largest |r| with y."""

    def analysis(task: Task) -> list[str]:
        values = np.stack([acts[example.id] for example in task])
        y = task.column("y").astype(float)
        values, y = values - values.mean(0), y - y.mean()
        r = np.abs(y @ values) / np.linalg.norm(values, axis=0)
        return [f"L{unit // WIDTH}N{unit % WIDTH}" for unit in np.argsort(-r)[:top]]

    return analysis


def test_parts_are_halves_of_whole_groups_drawn_in_disjoint_pairs() -> None:
    seen: list[Task] = []

    def look(task: Task) -> list[str]:
        seen.append(task)
        return ["L0N0"]

    task = make_task(21)
    found = stability(look, task, n=6, seed=3)
    assert seen[0] == task
    parts = seen[1:]
    assert found.runs == ("1a", "1b", "2a", "2b", "3a", "3b")
    for part in parts:
        assert len(part.groups) == 10 == found.n_groups_run
        assert list(part) == [example for example in task if example.group in part.groups]
    for one, other in found.pairs.tolist():
        assert not set(parts[one].groups) & set(parts[other].groups)
    assert len({part.groups for part in parts}) == 6
    assert len({part.split_name for part in parts}) == 6
    # Of the seed: the same again, and others with another.
    again = seen[1:]
    seen.clear()
    stability(look, task, n=6, seed=3)
    assert seen[1:] == again
    seen.clear()
    stability(look, task, n=6, seed=4)
    assert seen[1:] != again


def test_numbers_are_what_a_loop_counts() -> None:
    acts = activations(0, TRUE)
    analysis, sets = strongest(acts), []

    def keep(task: Task) -> list[str]:
        sets.append(set(analysis(task)))
        return sorted(sets[-1])

    found = stability(keep, make_task(), n=8, among=UNITS)
    whole, *runs = sets
    units = [f"L{layer}N{unit}" for layer in range(LAYERS) for unit in range(WIDTH)]
    for name, share in zip(found.names, found.share.tolist(), strict=True):
        assert share == pytest.approx(sum(name in run for run in runs) / 8)
    assert set(found.names) == set.union(*sets)
    assert {n for n, mine in zip(found.names, found.in_whole, strict=True) if mine} == whole
    assert (np.diff(found.share.numpy()) <= 0).all()
    for place, (one, other) in enumerate([(0, 1), (2, 3), (4, 5), (6, 7)]):
        a, b = runs[one], runs[other]
        both = len(a & b)
        assert found.shared[place] == both
        assert found.jaccard[place] == pytest.approx(both / len(a | b))
        assert found.overlap[place] == pytest.approx(both / TOP)
        assert found.expected[place] == pytest.approx(TOP * TOP / UNITS)
        assert found.p[place] == pytest.approx(hypergeom.sf(both - 1, UNITS, TOP, TOP))
        kappa = cohen_kappa_score([u in a for u in units], [u in b for u in units])
        assert found.kappa[place] == pytest.approx(kappa)
    assert found.p_pairs == pytest.approx(min(1, 2 * np.median(found.p)))
    assert found.returning(0.75) == [n for n in found.names if sum(n in r for r in runs) >= 6]
    assert found.returning_by_chance(0.75) == pytest.approx(TOP**2 / UNITS / 0.5)


def test_chance_keeps_the_layers_where_they_are_known() -> None:
    """Against random sets with as many in each layer."""
    acts = activations(1)
    task = make_task()
    found = stability(strongest(acts), task, n=2, among=PER_LAYER)
    assert found.by_layer
    random = np.random.default_rng(0)
    sizes = []
    for row in found.found.tolist():
        names = [name for name, inside in zip(found.names, row, strict=True) if inside]
        sizes.append([sum(name.startswith(f"L{k}") for name in names) for k in range(LAYERS)])
    draws = [
        sum(
            len({*random.permutation(WIDTH)[:a]} & {*random.permutation(WIDTH)[:b]})
            for a, b in zip(*sizes, strict=True)
        )
        for _ in range(2000)
    ]
    error = np.std(draws) / len(draws) ** 0.5
    assert float(found.expected) == pytest.approx(np.mean(draws), abs=4 * error)
    tail = np.mean(np.array(draws) >= int(found.shared))
    assert float(found.p) == pytest.approx(tail, abs=4 * (0.25 / len(draws)) ** 0.5)
    with pytest.raises(LensSkillsError, match="is in none"):
        stability(strongest(acts), task, n=2, among={0: 100})


def test_noise_shares_what_chance_does_and_seldom_has_a_small_p() -> None:
    pairs, small, often, bound, common = [], 0, [], [], []
    task = make_task()
    for seed in range(60):
        analysis = strongest(activations(100 + seed))
        found = stability(analysis, task, n=4, among=UNITS, seed=seed)
        pairs += found.shared.tolist()
        small += found.p_pairs <= 0.05
        often.append(len(found.returning(0.75)))
        bound.append(found.returning_by_chance(0.75))
        if seed < 20:
            more = stability(analysis, task, n=2, among=UNITS, share=0.8, seed=seed)
            common += more.shared.tolist()
            assert more.p.isnan().all()
            assert np.isnan(more.returning_by_chance())
    expected = TOP * TOP / UNITS
    error = np.std(pairs) / len(pairs) ** 0.5
    assert np.mean(pairs) == pytest.approx(expected, abs=4 * error)
    assert np.mean(pairs) < 1.5 * expected
    assert small <= 7  # 60 x 5 % = 3; more than 7 in 3 % of cases
    assert np.mean(often) <= np.mean(bound)
    # Why samples that share groups get no p: noise in common returns.
    assert np.mean(common) > 5 * expected


def test_planted_neurons_return_and_the_noise_beside_them_does_not() -> None:
    found = stability(strongest(activations(2, TRUE)), make_task(), n=10, among=UNITS)
    assert set(found.names[:3]) == set(TRUE)
    assert found.share[:3].tolist() == [1, 1, 1]
    exact = stability(strongest(activations(2, TRUE), 3), make_task(), n=10, among=UNITS)
    assert exact.names == tuple(sorted(TRUE))
    assert exact.p_pairs < 1e-5
    assert exact.kappa.tolist() == pytest.approx([1] * 5)
    assert set(exact.returning()) == set(TRUE)
    assert exact.returning_by_chance() < 0.04
    low = exact.frame()["low"]
    assert low.tolist() == pytest.approx([1 / (1 + 1.959964**2 / 10)] * 3)  # Wilson, 10 of 10


def study_of(selected: list[str], words: dict[str, str] | None) -> Any:
    """What `read` needs of a study."""
    rulings = [SimpleNamespace(name=name, word=word) for name, word in (words or {}).items()]
    return SimpleNamespace(
        selection=SimpleNamespace(names=selected),
        verdict=None if words is None else SimpleNamespace(rulings=(*rulings, SET)),
        scores=SimpleNamespace(
            layer=torch.arange(3).repeat_interleave(10), excluded=torch.arange(30) == 0
        ),
    )


SET = SimpleNamespace(name="set", word="supports")


def test_a_study_brings_its_selection_its_words_and_its_layers() -> None:
    words = {"L1N1": "supports", "L2N2": "undecided", "L2N3": "no total effect beyond δ"}
    runs = [
        study_of([*words], words),
        study_of(["L1N1", "L2N2"], {"L1N1": "supports", "L2N2": "supports"}),
        study_of(["L1N1"], {"L1N1": "supports"}),
        study_of([], None),
        None,
    ]
    found = stability(lambda _: runs.pop(0), make_task(), n=4)
    assert found.kind == "study"
    assert (found.population, found.by_layer) == (29, True)
    assert found.names == ("L1N1", "L2N2", "L2N3")
    assert found.found.sum(0).tolist() == [2, 1, 0]
    assert found.ruled == tuple(words)
    assert found.words[0] == ("supports", "supports", "")
    stay = found.words_that_stay()
    assert stay["stay"] == pytest.approx(2 / 12)
    assert stay["not_tried"] == pytest.approx(9 / 12)
    assert stay["chance"] == pytest.approx((2 / 9 + 1 / 9) / 4)
    assert 0 <= stay["low"] < 2 / 12 < stay["high"] <= 1
    assert found.changes()["count"].sum() == 12
    assert found.frame()["word_stays"].tolist() == pytest.approx([0.5, 0, 0])
    assert "75% were not tried again" in repr(found)
    assert found.kappa.isnan().tolist() == [False, True]  # of two empty sets nothing is known


def edge(sender: int, position: str, confirmed: bool) -> Edge:
    return Edge(
        Node(0, "head", sender, position), Node(2, "mlp", None, position), "in", "logit_diff",
        0.1, effect=0.1, verdict="confirmed" if confirmed else "negligible",
    )  # fmt: skip


def circuit_of(edges: list[Edge], unexplained: float) -> Circuit:
    """What `read` needs of a circuit."""
    circuit = object.__new__(Circuit)
    part = SimpleNamespace(part="upstream", unexplained=unexplained)
    object.__setattr__(circuit, "edges", tuple(edges))
    object.__setattr__(circuit, "totals", (part,))
    return circuit


def test_a_circuit_brings_its_edges_and_what_it_leaves() -> None:
    """Chance decides among the edges that both runs tried."""
    runs = [
        circuit_of([edge(k, "-1", k < 2) for k in range(6)], 0.2),
        circuit_of([edge(k, "-1", k in (0, 1)) for k in range(5)], 0.3),
        circuit_of([edge(k, "-1", k in (0, 5)) for k in range(1, 6)] + [edge(0, "-1", True)], 0.5),
    ]
    found = stability(lambda _: runs.pop(0), make_task(), n=2)
    assert found.kind == "circuit"
    assert found.names[0] == "L0H0@-1 → L2MLP@-1 in on logit_diff"
    assert found.shared.tolist() == [1]
    # Both tried 0 to 4, of which one confirms 0 and 1 and the other 0.
    assert found.expected.tolist() == pytest.approx([2 * 1 / 5])
    assert found.p.tolist() == pytest.approx([hypergeom.sf(0, 5, 2, 1)])
    assert found.numbers["unexplained upstream"].tolist() == pytest.approx([0.3, 0.5])
    assert "unexplained upstream: 20% in the whole, 30% to 50% over halves" in repr(found)
    stay = found.words_that_stay()
    assert stay["stay"] == pytest.approx(
        (5 + 4) / 12
    )  # untried: 5; 1 no more, 5 only now confirmed
    assert "stay over all halves (95 % interval over 6 edges)" in " ".join(repr(found).split())
    with pytest.raises(LensSkillsError, match="It keeps no effects per pair"):
        stability(circuit_of([], 0.0))
    # In other words the same edge stands elsewhere.
    task = make_task().with_paraphrases({"now": lambda text: f"now {text}"})
    runs = [circuit_of([edge(0, "-1", True)], 0.1), circuit_of([edge(0, "-3", True)], 0.1)]
    found = stability(lambda _: runs.pop(0), task, over="paraphrases")
    assert found.names == ("L0H0 → L2MLP in on logit_diff",)
    assert found.found.tolist() == [[True], [True]]


def test_paraphrases_are_all_compared_and_get_no_p() -> None:
    task = agreement(96)
    texts: list[str] = []

    def look(part: Task) -> list[str]:
        texts.append(part[0].prompt)
        return ["L0N1", "L0N2"] if part[0].prompt.startswith("Apparently") else ["L0N1"]

    found = stability(look, task, over="paraphrases", among=10)
    assert found.runs == ("as asked", "words", "other words", "adverb", "adjective")
    assert texts == [task[0].prompt, *(p[0].prompt for p in task.paraphrases().values())]
    assert found.pairs.tolist() == [list(pair) for pair in itertools.combinations(range(5), 2)]
    assert found.names == ("L0N1", "L0N2")
    assert found.found.sum(0).tolist() == [5, 1]
    assert found.p.isnan().all()
    assert found.frame()["low"].isna().all()  # wordings are no draw from anything
    assert found.kappa[0] == 1
    assert "what is peculiar to those returns too" in " ".join(repr(found).split())
    assert stability(look, task, over="paraphrases", n=2).runs == (
        "as asked",
        "words",
        "other words",
    )
    with pytest.raises(LensSkillsError, match="knows one wording only"):
        stability(look, make_task(), over="paraphrases")


def test_what_the_analysis_may_hand_back() -> None:
    task = make_task()

    def names(result: Any) -> tuple[str, ...]:
        return stability(lambda _: result, task, n=2).names

    assert names(torch.tensor([[3, 4]])) == ("L3N4",)
    assert names([(3, 4), "L0H1"]) == ("L0H1", "L3N4")
    assert names(SimpleNamespace(names=["L1N1"])) == ("L1N1",)
    for bad, complaint in (
        (7, "a int names nothing"),
        ("L0N1", "a str names nothing"),
        ([1.5], "1.5 is no name"),
        (torch.zeros(3), "names nothing"),
    ):
        with pytest.raises(LensSkillsError, match=complaint):
            names(bad)


def test_a_part_that_cannot_be_analysed_has_found_nothing() -> None:
    calls = iter(range(100))

    def fails_once(task: Task) -> list[str]:
        if next(calls) == 2:
            raise LensSkillsError("too few of a class")
        return ["L0N1"]

    found = stability(fails_once, make_task(), n=4, among=10)
    assert found.found[:, 0].tolist() == [True, False, True, True]
    (note,) = found.notes
    assert note.startswith("1 of 4 parts could not be analysed")
    assert "1b because: too few of a class" in note

    def fails(task: Task) -> list[str]:
        if len(task.groups) < GROUPS:
            raise LensSkillsError("too few groups")
        return ["L0N1"]

    with pytest.raises(LensSkillsError, match="on no part of it: too few groups"):
        stability(fails, make_task(), n=2)
    with pytest.raises(LensSkillsError, match="too few groups"):
        stability(fails, make_task(20), n=2)
    with pytest.raises(ZeroDivisionError):
        stability(lambda task: [str(1 // 0)], make_task(), n=2)
    kinds = iter([["L0N1"], study_of(["L0N1"], None)])
    with pytest.raises(LensSkillsError, match="a study of 1a and a names of the whole"):
        stability(lambda _: next(kinds), make_task(), n=2)


def test_bad_requests() -> None:
    def one(_: Task) -> list[str]:
        return ["L0N1"]

    for options, complaint in (
        ({"over": "group"}, "there are groups and paraphrases"),
        ({"n": 3}, "an even number"),
        ({"n": 0}, "an even number"),
        ({"share": 1.0}, "between 0 and 1"),
        ({"share": 0.1}, "are 4, and fewer than 8 say nothing. Give a task of 80 groups"),
        ({"among": 0}, "how many neurons there are"),
    ):
        with pytest.raises(LensSkillsError, match=complaint):
            stability(one, make_task(), **options)
    with pytest.raises(LensSkillsError, match=r"or share=0\.67, whose parts have groups in common"):
        stability(one, make_task(12))
    assert stability(one, make_task(12), share=0.67).n_groups_run == 8
    with pytest.raises(LensSkillsError, match="needs no groups"):
        stability(one, make_task(8))
    with pytest.raises(LensSkillsError, match="on which task"):
        stability(one)
    with pytest.raises(LensSkillsError, match="compared by compare_scores"):
        stability([1, 2])  # type: ignore[arg-type]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    analysis, task = strongest(activations(3, TRUE)), make_task()
    calls: list[str] = []
    stop = [4]

    def counted(part: Task) -> list[str]:
        if len(calls) == stop[0]:
            raise KeyboardInterrupt
        calls.append(part.split_name)
        return analysis(part)

    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        stability(counted, task, n=6, among=UNITS, checkpoint=folder)
    stop[0] = 100
    with pytest.raises(LensSkillsError, match="another pass"):
        stability(counted, task, n=6, among=UNITS, seed=1, checkpoint=folder)
    found = stability(counted, task, n=6, among=UNITS, checkpoint=folder)
    assert len(calls) == len(set(calls)) == 7
    assert not folder.exists()
    straight = stability(analysis, task, n=6, among=UNITS)
    assert found.frame().equals(straight.frame())
    assert found.overlaps().equals(straight.overlaps())
    # A whole that is at hand is not run again.
    calls.clear()
    assert stability(counted, task, n=2, whole=["L0N0"]).names[-1] == "L0N0"
    assert len(calls) == 2


def test_it_is_saved_and_its_card_is_narrow(tmp_path: Path) -> None:
    found = stability(strongest(activations(4, TRUE)), make_task(), n=4, among=PER_LAYER)
    again = load(found.save(tmp_path / "found"))
    assert isinstance(again, Stability)
    assert repr(again) == repr(found)
    assert again.overlaps().equals(found.overlaps())
    assert (tmp_path / "found" / "overlaps.csv").exists()
    card = repr(found)
    assert max(map(len, card.splitlines())) <= 80
    assert card.startswith(
        "names on 4 halves of the groups (20 of 40 each), two and two disjoint\n"
    )
    assert "L0N3   4 of 4 [51%, 100%]" in card
    long = replace(found, notes=("word " * 60,))
    assert max(map(len, repr(long).splitlines())) <= 80
    unknown = stability(strongest(activations(4, TRUE)), make_task(), n=4)
    assert "by chance: unknown" in repr(unknown)
    assert unknown.expected.isnan().all()
    assert unknown.kappa.isnan().all()
