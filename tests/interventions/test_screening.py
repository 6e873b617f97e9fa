"""The screened sweep: the chosen are exact, the drawn speak for those that are left out."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.attribution import Prescreen, prescreen
from lens_skills.interventions.edits import ablate
from lens_skills.interventions.effects import Effects
from lens_skills.interventions.screening import LEAST_DRAWN, Screening
from lens_skills.interventions.sweep import sweep


@pytest.fixture(scope="module")
def task() -> ls.Task:
    return ls.tasks.agreement(n=6)


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return {"do": ablate("mean", over=ls.tasks.agreement(n=12)), "metric": "logit_diff"}


@pytest.fixture(scope="module")
def found(tiny_hooked: Any, task: ls.Task, options: dict[str, Any]) -> Effects:
    """192 neurons, a tenth of them chosen."""
    return sweep(tiny_hooked, task, screen=0.1, drawn=0.2, seed=3, **options)


@pytest.fixture(scope="module")
def whole(tiny_hooked: Any, task: ls.Task, options: dict[str, Any]) -> Effects:
    return sweep(tiny_hooked, task, **options)


@pytest.fixture(scope="module")
def expected(tiny_hooked: Any, task: ls.Task, options: dict[str, Any]) -> Prescreen:
    return prescreen(tiny_hooked, task, **options)


def made(n: int = 2000, seed: int = 0, **options: Any) -> tuple[Screening, torch.Tensor]:
    """Effects of heavy tails that a prediction sees in part, and which would be measured."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4, n, generator=generator).double()
    effects = normal[0] * normal[1].exp()
    predicted = effects * (1 + 0.5 * normal[2])
    names = tuple(f"L0N{place}" for place in range(n))
    taylor = effects.abs() * (0.5 * normal[3]).exp()
    given: dict[str, Any] = {"share": 0.05, "drawn": 0.1} | options
    return Screening.of(names, predicted, taylor, seed=seed, **given), effects


def test_what_was_measured_is_what_the_whole_sweep_measures(found: Effects, whole: Effects) -> None:
    screening = found.screening
    assert screening is not None
    assert int(screening.chosen.sum()) == 20
    assert int(screening.drawn.sum()) == 39
    assert not (screening.chosen & screening.drawn).any()
    assert screening.names == whole.names
    assert found.names == tuple(
        n for n, m in zip(whole.names, screening.measured, strict=True) if m
    )
    torch.testing.assert_close(found.total, whole.total[screening.measured], atol=1e-5, rtol=0)
    told = found.provenance["screening"]
    assert told == {"share": 0.1, "chosen": 20, "drawn": 39, "of": 192}


def test_the_chosen_are_the_union_of_two_tops(found: Effects, expected: Prescreen) -> None:
    screening = found.screening
    assert screening is not None
    assert expected.predicted is not None
    predicted = expected.predicted.mean(1)
    torch.testing.assert_close(screening.predicted, predicted)
    torch.testing.assert_close(screening.taylor, expected.taylor)
    union: set[int] = set()
    for k in range(1, 21):
        tops = {
            *predicted.abs().topk(k).indices.tolist(),
            *expected.taylor.topk(k).indices.tolist(),
        }
        if len(tops) > 20:
            break
        union = tops
    chosen = set(screening.chosen.nonzero()[:, 0].tolist())
    assert union <= chosen
    assert len(chosen - union) <= 1


def test_every_unit_says_what_is_known_of_it(found: Effects, whole: Effects) -> None:
    frame = found.frame(every=True)
    assert list(frame["name"]) == list(whole.names)
    exact = frame[frame["known"] == "exact"]
    assert list(exact["name"]) == list(found.names) == list(found.frame()["name"])
    assert exact["effect"].notna().all()
    others = frame[frame["known"] != "exact"]
    assert set(others["known"]) == {"predicted"}
    assert others["effect"].isna().all()
    assert others["predicted"].notna().all()
    assert set(whole.frame(every=True)["known"]) == {"exact"}


def test_what_is_not_finite_is_measured_first_and_else_unknown() -> None:
    names = tuple("abcdef")
    predicted = torch.tensor([1.0, math.nan, 3.0, math.nan, 5.0, math.nan]).double()
    taylor = torch.tensor([1.0, 0.0, 3.0, 0.0, 5.0, 0.0]).double()
    screening = Screening.of(names, predicted, taylor, share=0.3, drawn=0.0, seed=0)
    assert screening.known == ["predicted", "exact", "predicted", "unknown", "exact", "unknown"]
    left = screening.left_out(torch.tensor([1.0, 2.0]).double(), 10)
    assert (left.k, left.threshold, left.n_units, left.n_drawn) == (2, 1.0, 4, 0)
    assert (left.beyond_low, left.beyond_high) == (0, 4)
    assert "nothing is known of them" in " ".join(left.lines(""))


def test_the_card_tells_measured_from_left_out(found: Effects, tmp_path: Path) -> None:
    card = " ".join(repr(found).split())
    assert "59 of 192 units measured (20 chosen by gradients, 39 drawn from the rest)" in card
    assert "of the 172 left out" in card
    assert "the prediction's error among the drawn" in card
    assert max(map(len, repr(found).splitlines())) <= 80
    table = found.to_markdown(most=300)
    assert "59 of 192 units" in table
    assert all(f"| {name} |" in table for name in found.names)
    left = set(found.frame(every=True)["name"]) - set(found.names)
    assert not any(f"| {name} |" in table for name in left)
    assert "L0N" in found._repr_html_()
    again = ls.load(found.save(tmp_path / "kept"))
    assert repr(again) == repr(found)
    assert again.frame(every=True).equals(found.frame(every=True))
    assert again.left_out() == found.left_out()


def test_the_drawn_speak_for_those_left_out(found: Effects, whole: Effects) -> None:
    left, screening = found.left_out(k=10), found.screening
    assert screening is not None
    means = whole.total.mean(1).abs()
    rest = ~screening.chosen
    assert left.threshold == pytest.approx(
        float(means[screening.chosen].topk(10).values[-1]), rel=1e-3
    )
    assert left.n_units == 172
    beyond = int((means[rest] > left.threshold).sum())
    assert left.beyond_low <= beyond <= left.beyond_high
    assert left.total_low <= float(means[rest].sum()) <= left.total_high
    assert left.measured_total == pytest.approx(float(means[screening.chosen].sum()), rel=1e-3)
    assert left.largest == pytest.approx(float(means[screening.drawn].max()), rel=1e-3)
    assert 0.3 < left.agreement <= 1
    assert 0 < left.error < left.largest
    assert 0 <= left.recall <= 1


def test_intervals_of_what_was_left_out_cover_in_simulation() -> None:
    """Of 200 samples, with thresholds that few and many are beyond."""
    counted, summed, runs = {20: 0, 60: 0}, 0, 200
    for seed in range(runs):
        screening, effects = made(seed=seed)
        rest = effects[~screening.chosen].abs()
        for k in counted:
            left = screening.left_out(effects[screening.measured], k)
            beyond = int((rest > left.threshold).sum())
            counted[k] += left.beyond_low <= beyond <= left.beyond_high
        summed += left.total_low <= float(rest.sum()) <= left.total_high
    assert all(held / runs >= 0.95 for held in counted.values())
    assert 0.9 <= summed / runs <= 0.99


def test_draws_are_seeded_and_uniform() -> None:
    first, again, other = (made(seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first.drawn, again.drawn)
    assert not torch.equal(first.drawn, other.drawn)
    assert torch.equal(first.chosen, other.chosen)
    few, _ = made(n=400, drawn=0.001)
    assert int(few.drawn.sum()) == LEAST_DRAWN
    times = sum(made(n=300, seed=seed)[0].drawn.double() for seed in range(300))
    assert isinstance(times, torch.Tensor)
    rest = times[~made(n=300)[0].chosen]
    assert float(rest.std()) < 1.3 * math.sqrt(300 * 0.1 * 0.9)


def test_all_may_be_chosen() -> None:
    screening, effects = made(n=50, share=1.0)
    left = screening.left_out(effects, 5)
    assert (left.n_units, left.n_drawn, left.beyond_high) == (0, 0, 0)
    assert left.lines("nats") == ["  Nothing was left out."]


def test_an_interrupted_screened_sweep_goes_on(
    tiny: Any, task: ls.Task, options: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from lens_skills.interventions import partial_effects

    wanted = sweep(tiny, task, screen=0.05, **options)
    fill, parts = partial_effects._Sweep._fill, []

    def interrupted(*args: Any) -> None:
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(1)
        fill(*args)

    with monkeypatch.context() as patched:
        patched.setattr(partial_effects._Sweep, "_fill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(tiny, task, screen=0.05, checkpoint=tmp_path / "kept", **options)
    found = sweep(tiny, task, screen=0.05, checkpoint=tmp_path / "kept", **options)
    assert torch.equal(found.total, wanted.total)
    assert found.left_out() == wanted.left_out()


def test_bad_input(tiny: Any, task: ls.Task, whole: Effects, options: dict[str, Any]) -> None:
    for share in (0, 7, -0.1, True, math.nan):
        with pytest.raises(LensSkillsError, match="screen is a share of the units"):
            sweep(tiny, task, screen=share, **options)
    with pytest.raises(LensSkillsError, match="drawn is a share of the units"):
        sweep(tiny, task, screen=0.1, drawn=5, **options)
    with pytest.raises(LensSkillsError, match=r"no gradient.*Without screen every neuron"):
        sweep(tiny, task, screen=0.1, do=ablate("zero"), metric="correct")
    with pytest.raises(LensSkillsError, match="no neurons, or no examples"):
        sweep(tiny, task, [], screen=0.1, **options)
    with pytest.raises(LensSkillsError, match="measured all"):
        whole.left_out()
    with pytest.raises(LensSkillsError, match="k must be"):
        sweep(tiny, task, screen=0.1, **options).left_out(0)
