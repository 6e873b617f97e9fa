"""Planted neurons verified: the skilled support their skill, decoys and others do not."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lens_skills.activations import logit_diff
from lens_skills.activations.components import parse_components, sites_of
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import control_effects, effects
from lens_skills.interventions.control_neurons import across_layers, component_table, controls
from lens_skills.interventions.edits import Edit, ablate, clamp, scale, steer
from lens_skills.interventions.effects import Effects
from lens_skills.interventions.verdict import NO_EFFECT, SUPPORTS, Verdict
from lens_skills.interventions.verify import check_request, verify
from lens_skills.models import as_adapter
from lens_skills.scoring import EXPLORATORY, Selection, score, select
from lens_skills.tasks import Task
from tests.planted import plant

NOUNS = ("key", "keys", "girl", "girls", "boy", "boys", "author", "authors", "doctor", "doctors")
FRAMES = ("{0} near the {1}", "the {0} to the {1}", "hello {0} and {1}", "when {0} or the {1} {2}")
ANSWERS = (" it", " they")
SKILLS, DECOYS, WRITER = ("L1N3", "L2N7"), ("L1N11", "L2N5"), "L2N20"
FULL: dict[str, Any] = {
    "controls": controls(40, neurons=None),
    "also": (),
    "unrelated": False,
}
FAST = FULL | {"controls": controls(0, neurons=40), "pairs": False}


def part(number: int, n: int, *, name: str = "endings") -> Task:
    """Prompts that end in " is" or " are" and ask for " it" or " they"; every one its own group."""
    random = np.random.default_rng(number)
    found = []
    for place in range(n):
        plural = place % 2
        text = FRAMES[place % 4].format(*random.choice(NOUNS, 3))
        verb, other = (" are", " is") if plural else (" is", " are")
        found.append(
            Example(
                f"{number}/{place}",
                text + verb,
                answer=ANSWERS[plural],
                foil=ANSWERS[1 - plural],
                corrupted=text + other,
                labels={"plural": plural},
                kind=f"{number} {place % 40}",
            )
        )
    return Task(name, found, f"part {number}")


@dataclass(frozen=True)
class Case:
    model: Any
    explore: Task
    intervene: Task
    selection: Selection

    @property
    def mean(self) -> Edit:
        return ablate("mean", over=self.explore[:48])


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Case]]:
    """The case on either implementation; each is built once, and all weights come back."""
    undo: list[Callable[[], None]] = []

    @cache
    def get(kind: str) -> Case:
        return build(request.getfixturevalue(f"tiny_{kind}"), undo)

    yield get
    for put_back in undo:
        put_back()


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def each(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """On both implementations."""
    return cases(request.param)


@pytest.fixture(scope="module")
def case(cases: Callable[[str], Case]) -> Case:
    """On one: the HookedTransformer where there is one."""
    try:
        return cases("hooked")
    except pytest.skip.Exception:
        return cases("bridge")


def build(model: Any, undo: list[Callable[[], None]]) -> Case:
    """Two neurons that know and act, two that know only, one that acts only; and the search."""

    def tokens(word: str) -> list[int]:
        return model.tokenizer.encode(word, add_special_tokens=False)

    (singular,), (plural,) = map(tokens, ANSWERS)
    towards = (model.W_U[:, plural] - model.W_U[:, singular]).detach()
    towards = towards / towards.norm()
    ends = [tokens(" are")[0]], [tokens(" is")[0]]
    for name in (*SKILLS, *DECOYS):
        layer, neuron = map(int, name[1:].split("N"))
        writes = towards if name in SKILLS else 0.0
        undo.append(plant(model, layer, neuron, *ends, writes=writes))
    layer, neuron = map(int, WRITER[1:].split("N"))
    aside = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3)).double()
    undo.append(plant(model, layer, neuron, direction=aside / 10, strength=1.0, writes=towards))
    explore, confirm = part(0, 160), part(1, 160)
    options: dict[str, Any] = {"metrics": "label:plural", "layers": [1, 2, 3]}
    found = score(model, explore, n_permutations=100, **options)["label:plural"]
    checked = score(model, confirm, n_permutations=100, **options)["label:plural"]
    # The last word says the label, so nearly every neuron knows it; the planted ones know it best.
    return Case(model, explore, part(2, 40), select(found, checked).to_try(4))


def try_all(case: Case) -> Verdict:
    return verify(case.model, case.intervene, case.selection, do=case.mean, **FULL)


@pytest.fixture(scope="module")
def verdict(case: Case) -> Verdict:
    return try_all(case)


def test_the_strongest_are_all_that_were_planted_to_know(each: Case) -> None:
    assert {*SKILLS, *DECOYS} == set(each.selection.names)
    assert each.selection.basis_privileged.all()


def test_the_skilled_are_convicted_and_decoys_rejected(each: Case) -> None:
    verdict = try_all(each)
    for name in SKILLS:
        assert verdict[name].word == SUPPORTS
        assert verdict[name].high < -verdict.delta
    for name in DECOYS:
        assert verdict[name].word == NO_EFFECT
        assert (verdict[name].low, verdict[name].high) == pytest.approx((0, 0), abs=1e-4)
    assert verdict["set"].word == SUPPORTS
    assert not verdict.exploratory


def test_effects_are_those_of_plain_hooks(case: Case, verdict: Verdict) -> None:
    """One skilled neuron by TransformerLens's own hooks, its mean taken by hand."""
    layer, neuron = map(int, SKILLS[0][1:].split("N"))
    hook_name = f"blocks.{layer}.mlp.hook_post"
    (singular,), (plural,) = (
        case.model.tokenizer.encode(word, add_special_tokens=False) for word in ANSWERS
    )
    values = []
    for example in case.explore[:48]:
        tokens = case.model.to_tokens(example.prompt)
        with torch.no_grad():
            _, cache = case.model.run_with_cache(tokens, names_filter=[hook_name])
        values.append(cache[hook_name][0, -1, neuron].item())

    def hook(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        new = activation.clone()
        new[:, -1, neuron] = float(np.mean(values))
        return new

    effects = []
    for example in case.intervene:
        tokens = case.model.to_tokens(example.prompt)
        with torch.no_grad():
            clean = case.model(tokens)[0, -1]
            edited = case.model.run_with_hooks(tokens, fwd_hooks=[(hook_name, hook)])[0, -1]
        sign = 1 if example.labels["plural"] else -1
        change = (edited - clean).double()
        effects.append(sign * (change[plural] - change[singular]).item())
    place = verdict.effects.names.index(SKILLS[0])
    assert verdict.effects.total[place].tolist() == pytest.approx(effects, abs=1e-3)
    assert verdict[SKILLS[0]].effect == pytest.approx(np.mean(effects), abs=1e-4)


def test_ranks_are_counted_among_the_others(verdict: Verdict) -> None:
    others = verdict.control_neuron_effect.abs()
    assert not set(verdict.control_neurons) & {ruling.name for ruling in verdict.singles}
    assert len(verdict.control_neurons) == 4 * 48 - len(verdict)
    assert all(ruling.p_alike is not None for ruling in verdict.singles)
    assert verdict["set"].p_alike is None
    for ruling in verdict.singles:
        at_least = int((others >= abs(ruling.effect)).sum())
        assert ruling.rank == 1 + at_least
        assert ruling.p == pytest.approx((1 + at_least) / (1 + len(others)))
    whole = verdict["set"]
    larger = int((verdict.control_effect.abs() >= abs(whole.effect)).sum())
    assert (whole.n_controls, whole.p) == (40, pytest.approx((1 + larger) / 41))
    assert any("all layers" in note for note in verdict.notes)


def test_delta_is_what_others_reach_without_noise_and_one_per_cent(
    case: Case, verdict: Verdict
) -> None:
    """From all units of the home, those on trial among them: another list has the same δ."""
    mine = verdict.effects.total[:-1].mean(1)
    everything = torch.cat([verdict.control_neuron_effect, mine]).abs()
    assert len(everything) == 4 * 48
    least = 0.01 * abs(float(verdict.effects.clean.mean()))
    assert verdict.delta >= least
    assert verdict.delta <= max(float(everything.quantile(0.95)), least)
    assert verdict.scale == pytest.approx(100 * least)
    for ruling in verdict.rulings:
        assert ruling.delta == verdict.delta
        assert ruling.percent == pytest.approx(ruling.effect / least)
    alone = verify(case.model, case.intervene, SKILLS[:1], do=case.mean, **FULL)
    assert alone.delta == pytest.approx(verdict.delta)
    assert alone[SKILLS[0]].effect == pytest.approx(verdict[SKILLS[0]].effect)
    separate = part(7, 40)
    found = verify(case.model, case.intervene, SKILLS, do=case.mean, delta=separate, **FAST)
    assert "part 7" in found.delta_from or found.delta == pytest.approx(least)
    declared = verify(case.model, case.intervene, SKILLS, do=case.mean, delta=50.0, **FAST)
    assert declared.delta_from == "declared"
    assert {ruling.word for ruling in declared.singles} <= {NO_EFFECT, "compensated"}


def test_a_delta_below_what_can_be_resolved_is_said_first(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    module: Any = sys.modules[verify.__module__]
    make = module.measurer

    def watched(*args: Any) -> Any:
        measure = make(*args)

        def noted(*args: Any, **options: Any) -> Effects:
            parts.append(len(args[0]))
            return measure(*args, **options)

        return noted

    monkeypatch.setattr(module, "measurer", watched)
    said = []

    def warned(message: str, *args: Any, **options: Any) -> None:
        said.append((list(parts), message))

    monkeypatch.setattr("warnings.warn", warned)
    found = verify(case.model, case.intervene, SKILLS, do=case.mean, delta=1e-9, **FAST)
    ((before, text),) = said
    assert len(before) == 1  # the pilot alone
    assert "is below what 40 examples in 40 groups can resolve" in text
    assert text in found.notes


def test_of_right_or_wrong_it_is_known_what_can_be_resolved(case: Case) -> None:
    with pytest.warns(RuntimeWarning, match=r"0\.072 could be resolved"):
        found = verify(
            case.model, case.intervene, SKILLS, do=case.mean, metric="correct", delta=0.02, **FAST
        )
    assert found.effects.of_shares
    assert NO_EFFECT not in {ruling.word for ruling in found.singles}


def test_the_set_stands_beside_the_sum_of_its_neurons(verdict: Verdict) -> None:
    rows = verdict.table("set").set_index("name")["effect"]
    alone = sum(ruling.effect for ruling in verdict.singles)
    assert rows["sum of singles"] == pytest.approx(alone)
    assert rows["set"] == pytest.approx(verdict["set"].effect)
    assert rows["set - sum of singles"] == pytest.approx(verdict["set"].effect - alone)
    controls = verdict.table("controls").set_index("kind")
    assert set(controls.index) == {"matched", "important"}
    assert len(verdict.table("match")) == 3


def test_classes_pairs_and_notes_are_on_the_card(case: Case, verdict: Verdict) -> None:
    classes = verdict.table("classes")
    assert set(classes["value"]) == {"0", "1"}
    assert (classes["n"] == 20).all()
    pairs = verdict.table("pairs").set_index(["name", "what"])
    assert pairs.loc[(SKILLS[0], "noising"), "share"] > 0.1
    assert pairs.loc[("set", "denoising"), "share"] > 0.4
    assert not pairs.loc[(DECOYS[0], "denoising"), "sufficient"]
    assert not pairs["sufficient"][pairs.index.get_level_values("what") == "noising"].any()
    assert "denoising" in verdict.details()
    card = repr(verdict)
    assert max(map(len, card.splitlines())) <= 80
    assert f"nothing matches {DECOYS[0]}" in card or f"nothing matches {DECOYS[1]}" in card


def test_shares_are_ratios_of_means(case: Case) -> None:
    """Patching everything the last position says leaves exactly the corrupted run, and back."""
    heads = [f"L{layer}H{head}" for layer in range(4) for head in range(4)]
    everything = [f"L{layer}MLP" for layer in range(4)] + heads
    found = verify(
        case.model,
        case.intervene,
        [*everything],
        do=ablate("zero"),
        delta=1.0,
        **FAST | {"pairs": True, "controls": controls(0, neurons=20)},
    )
    shares = found.table("pairs").set_index(["name", "what"])["share"]
    # The two prompts differ in their last token: only its embedding is left unpatched.
    noised, denoised = shares[("set", "noising")], shares[("set", "denoising")]
    assert noised + denoised > 1


def test_steering_up_turns_the_sign_and_not_the_word(case: Case) -> None:
    options = FAST | {"by": ()}
    down = verify(case.model, case.intervene, SKILLS, do=scale(by=0.0), **options)
    up = verify(case.model, case.intervene, SKILLS, do=scale(by=2.0), **options)
    assert down.removes
    assert not up.removes
    for name in SKILLS:
        assert down[name].effect < 0 < up[name].effect
        assert down[name].word == up[name].word == SUPPORTS
    with pytest.raises(LensSkillsError, match="removes=True or removes=False"):
        verify(case.model, case.intervene, SKILLS, do=clamp(to=0.0), **options)
    assert not verify(
        case.model, case.intervene, SKILLS, do=steer(by=1.0, over=case.explore[:48]), **options
    ).removes


def test_keeping_only_the_set_is_preservation(case: Case) -> None:
    found = verify(
        case.model,
        case.intervene,
        SKILLS,
        do=case.mean,
        **FAST | {"pairs": "and preservation"},
    )
    row = found.tables["pairs"][-1]
    assert row["what"] == "preservation"
    assert row["share"] > 0.1
    assert not row["sufficient"]


def test_the_choice_of_ablation_is_a_table(case: Case) -> None:
    options = FAST | {"also": None}
    found = verify(case.model, case.intervene, [SKILLS[0]], do=case.mean, **options)
    table = found.table("ablations")
    assert [do.split()[0] for do in table["do"]] == ["mean", "zero", "resample"]
    assert (table["high"] < 0).all()
    assert "zero ablation" in found.details()


def test_unrelated_examples_are_measured_with_the_same_edit(case: Case) -> None:
    other = Task("other", [replace(e, id=f"u{e.id}") for e in part(9, 40)], "elsewhere")
    found = verify(
        case.model,
        case.intervene,
        [SKILLS[0]],
        do=ablate("zero"),
        **FAST | {"unrelated": other},
    )
    (row,) = found.tables["unrelated"]
    assert row["n"] == 40
    assert "on unrelated examples" in found.details()


def test_neutral_text_is_what_is_unrelated_by_default(case: Case) -> None:
    found = verify(
        case.model, case.intervene, [SKILLS[0]], do=ablate("zero"), **FAST | {"unrelated": True}
    )
    (row,) = found.tables["unrelated"]
    assert row["n"] == 60
    assert "on neutral text" in found.details()


def test_the_same_seed_gives_the_same_verdict(case: Case, verdict: Verdict) -> None:
    assert repr(try_all(case)) == repr(verdict)
    other = verify(
        case.model,
        case.intervene,
        case.selection,
        do=case.mean,
        seed=1,
        **FAST | {"controls": controls(40, neurons=40)},
    )
    assert not torch.equal(other.control_effect, verdict.control_effect)


def test_heads_and_mlps_can_be_tried(case: Case) -> None:
    found = verify(
        case.model, case.intervene, ["L2H1", "L3MLP"], do=ablate("zero"), delta=1.0, **FAST
    )
    assert [ruling.name for ruling in found.singles] == ["L2H1", "L3MLP"]
    assert found["L2H1"].n_controls == 15
    assert found["L3MLP"].n_controls == 3
    assert any("no causal word" in note for note in found.notes)


def test_few_groups_are_said(case: Case) -> None:
    few = Task("endings", [replace(e, group=str(i % 12)) for i, e in enumerate(part(5, 48))], "few")
    found = verify(case.model, few, SKILLS, do=ablate("zero"), **FAST)
    assert any("12 groups only" in note for note in found.notes)
    fewer = Task("endings", [replace(e, group=str(i % 7)) for i, e in enumerate(few)], "fewer")
    refused(case, "48 examples in 7 groups: a verdict needs 8 groups at least", examples=fewer)
    uneven = [replace(e, labels={"odd": int(i % 12 == 0)}) for i, e in enumerate(few)]
    refused(case, "odd = 1 are of 1 groups; an interval needs 8", examples=uneven, by=["odd"])


def refused(case: Case, text: str, /, **changes: Any) -> None:
    values: dict[str, Any] = {
        "examples": case.intervene,
        "neurons": case.selection,
        "do": ablate("zero"),
        **FAST,
        "controls": controls(2, neurons=40),
    }
    values |= changes
    with pytest.raises(LensSkillsError, match=text):
        verify(case.model, values.pop("examples"), values.pop("neurons"), **values)


def test_a_split_used_before_is_refused_or_the_verdict_is_exploratory(case: Case) -> None:
    refused(case, r"made with 160 examples of this split", examples=case.explore)
    renamed = [replace(e, id=f"new {e.id}", group=e.group) for e in case.explore]
    refused(case, r"made with 160 groups of this split", examples=Task("endings", renamed))
    mine = {"do": ablate("zero"), **FAST}
    used = case.explore[:40]
    found = verify(case.model, used, case.selection, exploratory=True, **mine)
    assert found.exploratory
    assert repr(found).startswith(EXPLORATORY)
    refused(case, "shares its examples", delta=case.intervene[:30])


def test_only_what_was_used_before_is_exploratory() -> None:
    """A plain list of examples has no task's name, which is no other task."""
    about = {"explore": {"task": "endings"}, "example_ids": ["0/1"], "groups": ["0/1"]}
    chosen = SimpleNamespace(neurons=[1], provenance=about, exploratory=False)
    case: tuple[Any, ...] = (chosen, ablate("zero"), None)
    assert not check_request(list(part(2, 4)), *case, exploratory=False)
    assert not check_request(part(2, 4), *case, exploratory=True)
    assert check_request(part(2, 4, name="other"), *case, exploratory=True)
    assert check_request(part(0, 4), *case, exploratory=True)
    chosen.exploratory = True
    assert check_request(part(2, 4), *case, exploratory=False)


def test_a_selection_of_something_else_is_refused(case: Case) -> None:
    refused(
        case,
        "made on the task 'endings', but the examples are of 'other'",
        examples=part(2, 60, name="other"),
    )
    refused(case, "at 'mlp.hook_post', but at='mlp.hook_pre'", at="mlp.hook_pre")
    about = {**case.selection.provenance}
    about["explore"] = {**about["explore"], "model_fingerprint": "f" * 64}
    refused(case, "another model", neurons=replace(case.selection, provenance=about))


def test_what_cannot_be_measured_is_refused(case: Case) -> None:
    refused(case, "no edit can change it", metric="label:plural")
    refused(case, "no examples to intervene on", examples=[])
    none = {
        name: torch.zeros(0, dtype=torch.float64)
        for name in ("r_explore", "r_confirm", "p", "q", "mean", "std")
    }
    empty = replace(case.selection, neurons=torch.zeros(0, 2).long(), position=(), **none)
    refused(case, "the selection is empty", neurons=empty)
    refused(case, "none were named", neurons=[])
    refused(case, "knows its own neurons only", do=ablate("mean", over=case.selection))
    refused(case, "positive number in the metric's unit", delta=-1.0)
    refused(
        case,
        "has no corrupted twin",
        pairs=True,
        examples=Task("endings", [replace(e, corrupted=None) for e in case.intervene]),
    )
    many = [f"L3N{index}" for index in range(25)]
    refused(case, r"layer 3: 25 of its units .* 23 other", neurons=many)
    refused(case, "20 at least. Declare it", controls=controls(2, neurons=2), neurons=["L2N1"])
    refused(case, "by 'tense': some have none", by=["tense"])


def test_the_position_is_that_of_the_selection(case: Case) -> None:
    at_span = replace(case.selection, positions=("span(are, last)",))
    refused(case, r"Say position=span\(…\) again", neurons=at_span)
    refused(case, "pools tokens", neurons=replace(case.selection, positions=("mean",)))
    second = replace(case.selection, positions=("-2",))
    found = verify(case.model, case.intervene, second, do=ablate("zero"), **FAST)
    assert found.effects.position == "-2"


def test_a_gap_within_noise_is_refused_or_noted(case: Case) -> None:
    same = Task("endings", [replace(e, corrupted=e.prompt) for e in case.intervene])
    refused(case, "which includes 0", examples=same, pairs=True)
    found = verify(case.model, same, SKILLS, do=ablate("zero"), **FAST | {"pairs": None})
    assert any("neither noised nor denoised" in note for note in found.notes)


def test_an_effect_that_is_not_finite_names_neuron_and_example(case: Case) -> None:
    text = rf"effect of {SKILLS[0]} on 'logit_diff' is \S+ for example '2/\d+'"
    refused(case, text, neurons=SKILLS, do=scale(by=1e300), pairs=False)


def test_ranks_stay_within_the_layer_where_it_is_wide_enough(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_skills.interventions.control_neurons.FEW_OTHERS", 10)
    adapter = as_adapter(case.model)
    units = parse_components(adapter, ["L1N3", "L2N7"])
    people = component_table(adapter, case.intervene, units)
    assert not across_layers(units, people)
    measure = effects.measurer(adapter, logit_diff(), "last", 0)
    change = ablate("zero").bind(adapter, case.intervene, sites_of(units), position="last")
    names = [unit.name for unit in units]
    own = measure(case.intervene, [(u,) for u in units], change, names=names)
    found = control_effects.measure_controls(
        measure,
        change,
        case.intervene,
        units,
        people,
        own,
        controls=controls(0, neurons=None),
        seed=0,
    )
    assert found.home.unique(return_counts=True)[1].tolist() == [47, 47]
    ranks = found.ranks(own, {})
    for place, members in enumerate((slice(0, 47), slice(47, 94))):
        mean = own.total[place].mean().abs()
        larger = int((found.mean[members].abs() >= mean).sum())
        assert ranks.p[place] == pytest.approx((1 + larger) / 48)
        assert ranks.n_controls[place] == 47
    values = control_effects.declare_delta(measure, found, ablate("zero"), None, scale=0.0).values
    alone = control_effects.measure_controls(
        measure, change, case.intervene, units[:1], people, replace(own, total=own.total[:1]),
        controls=controls(0, neurons=None), seed=0,
    )  # fmt: skip
    only = control_effects.declare_delta(measure, alone, ablate("zero"), None, scale=0.0).values
    assert values[0] == pytest.approx(only[0])
    assert values[0] != values[1]
