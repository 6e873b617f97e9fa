"""The sweep: fast, and equal to what hooks on full passes give."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills import checkpoints, config
from lens_skills.activations import evaluate, parse_metrics, span
from lens_skills.activations.components import parse_components, sites_of
from lens_skills.activations.forward import encode_examples, forward_batch, prepare
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import partial_effects
from lens_skills.interventions.batched_edits import edited_places, editing_of
from lens_skills.interventions.edits import ablate, clamp, patch, scale, steer
from lens_skills.interventions.effects import measure_effects
from lens_skills.interventions.sweep import sweep
from lens_skills.models import as_adapter
from lens_skills.models.partial_run import PartialForward

SKILLS = ["L0N5", "L1N47", "L2H3", "L3N0", "L2MLP", "L3N11"]


@pytest.fixture(scope="module")
def task() -> ls.Task:
    """Prompts of unlike length, answer and foil of one token each."""
    return ls.tasks.agreement(n=6)


def plus(n: int = 5) -> ls.Task:
    """Sums whose answers are one or two tokens long."""
    made = ls.tasks.arithmetic("+", digits=(1, 1), n=40, seed=0)
    long = [example for example in made if len(example.answer or "") > 1]
    short = [example for example in made if len(example.answer or "") == 1]
    return ls.Task("plus", [*long[: n - 2], *short[:2]])


def by_hooks(model: Any, task: ls.Task, unit: Any, put: Any) -> list[float]:
    """The effect on the logit difference, one full pass of plain TransformerLens per example."""
    adapter, effects = as_adapter(model), []
    for item in encode_examples(adapter, task, answers=True):
        tokens = torch.tensor([item.prompt_tokens.tolist()])

        def edit(activation: Tensor, hook: Any) -> Tensor:
            flat = activation.flatten(2).clone()
            flat[:, -1, unit.start : unit.stop] = put(flat[:, -1, unit.start : unit.stop])
            return flat.reshape(activation.shape)

        with torch.no_grad():
            clean = model(tokens)[0, -1]
            edited = model.run_with_hooks(tokens, fwd_hooks=[(unit.hook_name, edit)])[0, -1]
        pair = [*(item.answer_tokens or ()), *(item.foil_tokens or ())]
        effects.append(float((edited[pair] - clean[pair]).double().diff().neg()))
    return effects


def by_full_passes(
    model: Any, task: Any, sets: Any, do: Any, metric: Any, position: Any, seed: int = 0
) -> Tensor:
    """The effect of each set, by one edited pass per set, example and draw."""
    adapter, (one,) = as_adapter(model), parse_metrics(metric)
    encoded, plan = prepare(adapter, task, [one])
    units = [unit for units in sets for unit in units]
    change = do.bind(adapter, task, sites_of(units), position=position, seed=seed)
    places = edited_places(adapter, encoded, position)
    rows = []
    for units in sets:
        values = torch.zeros(change.n_draws, len(encoded), dtype=torch.float64)
        for draw in range(change.n_draws):
            editing = editing_of(change, units, places, draw=draw)
            for item in encoded:
                found = forward_batch(adapter, [item], plan, [one], {}, {}, editing)
                values[draw, item.index] = found[one.name]
        clean = [forward_batch(adapter, [i], plan, [one], {}, {})[one.name] for i in encoded]
        rows.append(values.mean(0) - torch.cat(clean))
    return torch.stack(rows)


def test_single_units_equal_a_loop_of_run_with_hooks(tiny: Any, task: ls.Task) -> None:
    with config(batch_size=4, edit_rows=7):
        found = sweep(tiny, task, SKILLS, do=ablate("zero"), metric="logit_diff")
    assert found.provenance["whole_passes"] is None
    assert list(found.names) == SKILLS
    for unit, row in zip(parse_components(as_adapter(tiny), SKILLS), found.total, strict=True):
        wanted = torch.tensor(by_hooks(tiny, task, unit, torch.zeros_like), dtype=torch.float64)
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(row, wanted, atol=1e-4, rtol=0)
    clean = evaluate(tiny, task, "logit_diff")["logit_diff"]
    torch.testing.assert_close(found.clean, clean, atol=1e-5, rtol=0)


def test_double_precision_agrees_to_1e_9(tiny_hooked: Any, task: ls.Task) -> None:
    model = copy.deepcopy(tiny_hooked).to(torch.float64)
    model.cfg.dtype = torch.float64
    found = sweep(model, task, SKILLS, do=clamp(to=0.7), metric="logit_diff")
    assert found.provenance["whole_passes"] is None
    for unit, row in zip(parse_components(as_adapter(model), SKILLS), found.total, strict=True):
        wanted = by_hooks(model, task, unit, lambda old: torch.full_like(old, 0.7))
        torch.testing.assert_close(
            row, torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0
        )


SETS = [["L0N5"], ["L1N2", "L1N40"], ["L1N3", "L1N41"], ["L0N1", "L2H1", "L3N7"], [], ["L2MLP"]]


@pytest.mark.parametrize("position", ["last", 1, [0, "last"], "all", span("key", take="last")])
def test_sets_and_positions_equal_full_passes(tiny: Any, position: Any) -> None:
    adapter = as_adapter(tiny)
    texts = ("The key to the cabinets", "The key", "The boy near the key and the table")
    task = [
        ls.Example(id=str(place), prompt=text, answer=" is", foil=" are")
        for place, text in enumerate((*texts, "The key to the cabinet"))
    ]
    sets = [parse_components(adapter, names) for names in SETS]
    do = clamp(to=1.5)
    with config(batch_size=3, edit_rows=20):
        found = measure_effects(adapter, task, sets, do, metric="logit_diff", position=position)
    assert found.provenance["whole_passes"] is None
    wanted = by_full_passes(tiny, task, sets, do, "logit_diff", position)
    torch.testing.assert_close(found.total, wanted, atol=1e-4, rtol=0)
    assert found.total[4].abs().max() == 0  # nothing edited, no effect
    assert wanted[[0, 1, 2, 3, 5]].abs().amax(1).min() > 1e-4


def top_logit(logits: Tensor, examples: Any) -> Tensor:
    return logits.amax(-1)


@pytest.mark.parametrize(
    "metric",
    ["logit_diff", "answer_probability", "entropy", "correct", "confidence:options", top_logit],
)
def test_every_metric_equals_full_passes(tiny: Any, metric: Any) -> None:
    """Answers, foils and options of several tokens, and functions of the whole vocabulary."""

    def more(example: ls.Example) -> tuple[str, ...]:
        return (str(example.answer), "7", "104")

    task: Any = plus()
    if metric == "confidence:options":
        task = [
            ls.Example(id=e.id, prompt=e.prompt, answer=e.answer, options=more(e)) for e in task
        ]
    adapter = as_adapter(tiny)
    sets = [parse_components(adapter, names) for names in (["L0N5"], ["L2H1"], ["L1N3", "L3N4"])]
    with config(batch_size=3):
        found = measure_effects(adapter, task, sets, clamp(to=3.0), metric=metric)
    wanted = by_full_passes(tiny, task, sets, clamp(to=3.0), metric, "last")
    torch.testing.assert_close(found.total, wanted, atol=1e-4, rtol=0)
    assert found.provenance["whole_passes"] is None


@pytest.mark.parametrize("position", [1, [0, "last"], "all"])
def test_options_of_several_tokens_at_every_position(tiny: Any, position: Any) -> None:
    """Prompts of several lengths; options that share beginnings, one that begins another."""
    options = (" is", " is on the table", " is on", " are in it")
    texts = ("The key to the cabinets", "The key", "The boy near the key and the table")
    task: Any = [
        ls.Example(id=str(k), prompt=text, answer=options[1 + k], options=options)
        for k, text in enumerate(texts)
    ]
    adapter = as_adapter(tiny)
    sets = [parse_components(adapter, names) for names in SETS]
    for metric in ("logit_diff", "answer_probability:options"):
        with config(batch_size=2, edit_rows=40):
            found = measure_effects(
                adapter, task, sets, clamp(to=1.5), metric=metric, position=position
            )
        wanted = by_full_passes(tiny, task, sets, clamp(to=1.5), metric, position)
        assert found.provenance["whole_passes"] is None
        torch.testing.assert_close(found.total, wanted, atol=1e-4, rtol=0)
        assert wanted.abs().max() > 1e-4


def test_random_draws_are_averaged(tiny: Any, task: ls.Task) -> None:
    adapter = as_adapter(tiny)
    sets = [parse_components(adapter, names) for names in (["L0N5"], ["L2H1", "L3N4"])]
    for do in (
        ablate("resample", over=ls.tasks.agreement(n=12), draws=3),
        ablate("noise", over=ls.tasks.agreement(n=12), draws=2),
    ):
        found = measure_effects(adapter, task, sets, do, metric="logit_diff", seed=3)
        wanted = by_full_passes(tiny, task, sets, do, "logit_diff", "last", seed=3)
        torch.testing.assert_close(found.total, wanted, atol=1e-4, rtol=0)


def test_patching_from_the_twin(tiny: Any, task: ls.Task) -> None:
    adapter = as_adapter(tiny)
    sets = [parse_components(adapter, [name]) for name in ("L0N5", "L1MLP")]
    found = measure_effects(adapter, task, sets, patch("corrupted"), metric="logit_diff")
    wanted = by_full_passes(tiny, task, sets, patch("corrupted"), "logit_diff", "last")
    torch.testing.assert_close(found.total, wanted, atol=1e-4, rtol=0)


def test_what_changes_nothing_has_exactly_no_effect(tiny: Any, task: ls.Task) -> None:
    over = ls.tasks.agreement(n=12)
    for do in (scale(by=1.0), steer(by=0.0, over=over)):
        found = sweep(tiny, task, SKILLS, do=do, metric="logit_diff", direct=True)
        assert found.total.abs().max() == 0
        assert found.direct is not None
        assert found.direct.abs().max() == 0


def test_what_is_off_already_costs_no_pass(
    tiny_hooked: Any, task: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As most neurons of a ReLU are; some of the off ones run along, for a round number."""
    model, sizes = copy.deepcopy(tiny_hooked), []
    with torch.no_grad():
        model.blocks[1].mlp.W_gate[:, :43] = 0
    adapter = as_adapter(model)
    layer = [(unit,) for unit in parse_components(adapter, [(1, k) for k in range(48)])]
    run = PartialForward.run

    def watched(self: Any, residual: Tensor, *args: Any, **options: Any) -> Tensor:
        sizes.append(len(residual))
        return run(self, residual, *args, **options)

    monkeypatch.setattr(PartialForward, "run", watched)
    with config(edit_rows=1000):
        found = measure_effects(adapter, task, layer, ablate("zero"), metric="logit_diff")
    assert sizes[-1] == 32  # 5 that are on, rounded up
    some = [0, 30, 43, 44, 47]
    wanted = by_full_passes(
        model, task, [layer[k] for k in some], ablate("zero"), "logit_diff", "last"
    )
    torch.testing.assert_close(found.total[some], wanted, atol=1e-4, rtol=0)
    assert found.total[:43].abs().max() == 0
    assert found.total[43:].abs().amax(1).min() > 1e-5


def test_a_decoy_has_exactly_no_effect(tiny_hooked: Any, task: ls.Task) -> None:
    model = copy.deepcopy(tiny_hooked)
    model.blocks[1].mlp.W_out.data[7] = 0
    found = sweep(model, task, ["L1N7", "L1N8"], do=clamp(to=5.0), metric="logit_diff")
    assert found.total[0].abs().max() == 0
    assert found.total[1].abs().min() > 0


def test_the_direct_effect_is_the_write_through_the_frozen_norm(
    tiny_hooked: Any, task: ls.Task
) -> None:
    """Against the formula written out: Δa · W_out · gain / scale · (W_U[answer] - W_U[foil])."""
    names = ["L0N5", "L3N11", "L2H3"]
    found = sweep(tiny_hooked, task, names, do=ablate("zero"), metric="logit_diff", direct=True)
    assert found.direct is not None
    for place, item in enumerate(encode_examples(as_adapter(tiny_hooked), task, answers=True)):
        tokens = torch.tensor([item.prompt_tokens.tolist()])
        with torch.no_grad():
            _, cache = tiny_hooked.run_with_cache(tokens)
        sigma, gain = cache["ln_final.hook_scale"][0, -1], tiny_hooked.ln_final.w
        answer, foil = [*(item.answer_tokens or ()), *(item.foil_tokens or ())]
        direction = tiny_hooked.W_U[:, answer] - tiny_hooked.W_U[:, foil]
        z = cache["blocks.2.attn.hook_z"][0, -1, 3] @ tiny_hooked.W_O[2, 3]
        for row, write in enumerate((
            cache["blocks.0.mlp.hook_post"][0, -1, 5] * tiny_hooked.W_out[0, 5],
            cache["blocks.3.mlp.hook_post"][0, -1, 11] * tiny_hooked.W_out[3, 11],
            z,
        )):  # fmt: skip
            wanted = -float(((write / sigma * gain) @ direction).detach())
            assert float(found.direct[row, place]) == pytest.approx(wanted, abs=1e-4)


def test_direct_is_none_where_it_is_not_defined(tiny: Any, task: ls.Task) -> None:
    options: dict[str, Any] = {"do": ablate("zero"), "direct": True}
    assert sweep(tiny, task, ["L0N5"], metric="entropy", **options).direct is None
    assert sweep(tiny, task, ["L0N5"], metric="logit_diff", position=0, **options).direct is None
    assert sweep(tiny, plus(), ["L0N5"], metric="logit_diff", **options).direct is None


def test_a_users_hook_keeps_firing(tiny: Any, task: ls.Task) -> None:
    """Then whole passes are run, and the result says so."""
    point, seen = tiny.hook_dict["blocks.1.hook_resid_pre"], []
    point.add_hook(lambda activation, hook: seen.append(1) or activation * 1.5)
    try:
        found = sweep(tiny, task, ["L0N5"], do=ablate("zero"), metric="logit_diff")
        unit = parse_components(as_adapter(tiny), "L0N5")[0]
        wanted = by_hooks(tiny, task, unit, torch.zeros_like)
        assert len(point.fwd_hooks) == 1
    finally:
        tiny.reset_hooks()
    assert seen
    assert "hooks of its user" in found.provenance["whole_passes"]
    torch.testing.assert_close(
        found.total[0], torch.tensor(wanted, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_what_is_not_finite_names_unit_and_example(tiny: Any, task: ls.Task) -> None:
    for metric in ("logit_diff", "entropy"):
        with pytest.raises(LensSkillsError, match=f"effect of L1N2 .*{task[0].id}"):
            sweep(tiny, task[:1], ["L1N2"], do=scale(by=1e300), metric=metric)


def test_bad_input(tiny: Any, task: ls.Task) -> None:
    def run(examples: Any = task, **options: Any) -> Any:
        asked = {"do": ablate("zero"), "metric": "logit_diff", **options}
        return sweep(tiny, examples, ["L0N5"], **asked)

    with pytest.raises(LensSkillsError, match="no examples"):
        run([])
    with pytest.raises(LensSkillsError, match="known before the model runs"):
        run(metric="label:plural")
    with pytest.raises(LensSkillsError, match="one metric"):
        run(metric=["logit_diff", "entropy"])
    with pytest.raises(LensSkillsError, match="pools"):
        run(position="mean")
    with pytest.raises(LensSkillsError, match="2 names"):
        measure_effects(
            as_adapter(tiny), task, [()], ablate("zero"), metric="logit_diff", names=["a", "b"]
        )


@pytest.fixture
def small_batches() -> Iterator[None]:
    with config(batch_size=3):
        yield


@pytest.mark.usefixtures("small_batches")
def test_an_interrupted_sweep_goes_on_where_it_stopped(
    tiny: Any, task: ls.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"do": ablate("zero"), "metric": "logit_diff"}
    names = ["L0N5", "L1N6", "L3N7"]  # three parts on each of two batches
    wanted = sweep(tiny, task, names, direct=True, **options)
    engine_room: Any = partial_effects
    fill, parts = engine_room._Sweep._fill, []

    def interrupted(*args: Any) -> None:
        if len(parts) == 4:
            raise KeyboardInterrupt
        parts.append(1)
        fill(*args)

    folder = tmp_path / "sweep"
    with monkeypatch.context() as patched:
        patched.setattr(engine_room._Sweep, "_fill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(tiny, task, names, direct=True, checkpoint=folder, **options)
    assert list(folder.glob("state-*sweep*"))
    with pytest.raises(LensSkillsError, match=r"another pass .*(neurons|names)"):
        sweep(tiny, task, names[:2], direct=True, checkpoint=folder, **options)
    parts.clear()
    with monkeypatch.context() as patched:
        patched.setattr(engine_room._Sweep, "_fill", lambda *args: (parts.append(1), fill(*args)))
        found = sweep(tiny, task, names, direct=True, checkpoint=folder, **options)
    assert len(parts) == 2  # of six
    assert torch.equal(found.total, wanted.total)
    assert torch.equal(found.clean, wanted.clean)
    assert found.direct is not None
    assert wanted.direct is not None
    assert torch.equal(found.direct, wanted.direct)
    assert not folder.exists()
    assert checkpoints.SECONDS_BETWEEN > 1


def test_the_whole_site_is_swept(tiny: Any, task: ls.Task) -> None:
    found = sweep(tiny, task[:2], do=ablate("zero"), metric="logit_diff")
    assert found.total.shape == (4 * 48, 2)
    assert found.names[48] == "L1N0"
    assert found.site == "mlp.hook_post"
    assert set(found.frame()["name"]) == set(found.names)
