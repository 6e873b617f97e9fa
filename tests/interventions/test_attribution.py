"""The prescreen: gradients that equal finite differences, and a model left as it was."""

import copy
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import lens_skills as ls
from lens_skills import config
from lens_skills.activations.forward import encode_examples, prepare
from lens_skills.activations.locations import find_site
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.attribution import (
    Prescreen,
    activations_and_gradients,
    prescreen,
    whole_gradients,
)
from lens_skills.interventions.batched_edits import edited_places
from lens_skills.interventions.edits import ablate, clamp, steer
from lens_skills.interventions.sweep import sweep
from lens_skills.models import as_adapter
from lens_skills.stats.correlation import rank_agreement

NAMES = ["L0N5", "L1N47", "L3N11", "L2H3", "L1MLP"]


@pytest.fixture(scope="module")
def task() -> ls.Task:
    return ls.tasks.agreement(n=5)


def sums() -> ls.Task:
    """Answers and foils of one and of two tokens."""
    made = ls.tasks.arithmetic("+", digits=(1, 1), n=40, seed=0)
    long = [example for example in made if len(example.answer or "") > 1]
    short = [example for example in made if len(example.answer or "") == 1]
    return ls.Task("plus", [*long[:2], *short[:2]])


def backward(model: Any, task: ls.Task, layer: int, site: str) -> tuple[Tensor, Tensor]:
    """Activation and gradient of the logit difference at the last token: plain PyTorch."""
    old, slope = [], []
    for item in encode_examples(as_adapter(model), task, answers=True):
        seen: list[Tensor] = []

        def leaf(activation: Tensor, hook: Any, seen: list[Tensor] = seen) -> Tensor:
            seen.append(activation.detach().requires_grad_())
            return seen[0]

        tokens = torch.tensor([item.prompt_tokens.tolist()])
        logits = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.{site}", leaf)])[0, -1]
        pair = [*(item.answer_tokens or ()), *(item.foil_tokens or ())]
        odds = logits[pair[0]] - logits[pair[1]]
        (found,) = torch.autograd.grad(odds, seen)
        old.append(seen[0].detach()[0, -1].flatten())
        slope.append(found[0, -1].flatten())
    return torch.stack(old).double(), torch.stack(slope).double()


def test_estimates_equal_a_plain_backward_pass(tiny: Any, task: ls.Task) -> None:
    with config(batch_size=3):
        found = prescreen(tiny, task, NAMES, metric="logit_diff", do=clamp(to=0.3))
    assert found.predicted is not None
    for row, (layer, site, start, stop) in enumerate([
        (0, "mlp.hook_post", 5, 6), (1, "mlp.hook_post", 47, 48), (3, "mlp.hook_post", 11, 12),
        (2, "attn.hook_z", 24, 32), (1, "hook_mlp_out", 0, 32),
    ]):  # fmt: skip
        old, slope = backward(tiny, task, layer, site)
        part = slice(start, stop)
        wanted = ((0.3 - old) * slope)[:, part].sum(1)
        torch.testing.assert_close(found.predicted[row], wanted, atol=1e-5, rtol=1e-3)
        taylor = (old * slope)[:, part].sum(1).abs().mean()
        torch.testing.assert_close(found.taylor[row], taylor, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("metric", ["logit_diff", "answer_probability"])
@pytest.mark.parametrize("position", ["last", "all", [1, "last"]])
def test_predictions_are_the_limit_of_small_edits(
    tiny_hooked: Any, metric: str, position: Any
) -> None:
    """Also through answers and foils of several tokens, run behind the prompt."""
    model = copy.deepcopy(tiny_hooked).to(torch.float64)
    model.cfg.dtype = torch.float64
    do = steer(by=1e-3, over=sums())
    names = ["L0N5", "L1N47", "L2H3"]
    found = prescreen(model, sums(), names, metric=metric, do=do, position=position)
    exact = sweep(model, sums(), names, do=do, metric=metric, position=position)
    assert found.predicted is not None
    scale = exact.total.abs().max()
    # The metric itself is rounded to float32 where it reads several tokens.
    torch.testing.assert_close(found.predicted, exact.total, atol=0.02 * float(scale), rtol=0.05)


def test_options_of_several_tokens_have_gradients(tiny: Any) -> None:
    """What shares the prompt is differentiated as in passes of its own."""
    options = (" is", " is on the table", " are in it")
    texts = ("The key to the cabinets", "The key", "The boy near the key")
    task = [
        ls.Example(str(k), text, answer=options[k], options=options) for k, text in enumerate(texts)
    ]
    adapter, metric = as_adapter(tiny), ls.metrics.logit_diff()
    encoded, plan = prepare(adapter, task, [metric])
    places = edited_places(adapter, encoded, "all")
    site = find_site(adapter, "mlp.hook_post", None)
    sites = {site.name: site.layers}
    found = activations_and_gradients(adapter, encoded, plan, metric, places, sites)
    wanted = whole_gradients(adapter, encoded, plan, metric, places, site)
    for spot, part in wanted.items():
        torch.testing.assert_close(found[spot].old, part.old, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[spot].slope, part.slope, atol=1e-4, rtol=1e-3)


def test_the_model_is_left_as_it_was(tiny: Any, task: ls.Task) -> None:
    parameters = [*tiny.parameters()]
    before = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    was = torch.is_grad_enabled()
    prescreen(tiny, task, metric="logit_diff")
    assert [(p.requires_grad, p.grad) for p in parameters] == before
    assert torch.is_grad_enabled() == was
    assert not any(point.fwd_hooks for point in tiny.hook_dict.values())


def test_frozen_parameters_are_no_obstacle(tiny_hooked: Any, task: ls.Task) -> None:
    wanted = prescreen(tiny_hooked, task, NAMES, metric="logit_diff")
    model = copy.deepcopy(tiny_hooked).requires_grad_(False)
    found = prescreen(model, task, NAMES, metric="logit_diff")
    torch.testing.assert_close(found.taylor, wanted.taylor)
    with torch.no_grad():
        found = prescreen(model, task, NAMES, metric="logit_diff")
    torch.testing.assert_close(found.taylor, wanted.taylor)


def test_agreement_with_the_exact_effects(tiny: Any, task: ls.Task) -> None:
    do = ablate("mean", over=ls.tasks.agreement(n=20))
    found = prescreen(tiny, task, metric="logit_diff", do=do)
    exact = sweep(tiny, task, do=do, metric="logit_diff")
    agreement = found.agreement(exact)
    assert found.predicted is not None
    wanted = stats.spearmanr(found.predicted.mean(1).numpy(), exact.total.mean(1).numpy())[0]
    assert agreement["predicted"] == pytest.approx(wanted, abs=1e-9)
    assert agreement["predicted"] > 0.5
    assert agreement["taylor"] > 0.3
    some = sweep(tiny, task, found.top(9), do=do, metric="logit_diff")
    assert set(found.agreement(some)) == {"taylor", "predicted"}
    strongest = exact.total.abs().mean(1)
    chosen = [exact.names.index(name) for name in found.top(20)]
    assert strongest[chosen].mean() > 3 * strongest.mean()
    assert list(found.frame().columns) == ["name", "taylor", "predicted"]


def test_bad_input(tiny: Any, task: ls.Task) -> None:
    for metric in ("correct", lambda logits, examples: logits.amax(-1)):
        with pytest.raises(LensSkillsError, match="has no gradient"):
            prescreen(tiny, task, NAMES, metric=metric)
    with pytest.raises(LensSkillsError, match="no examples"):
        prescreen(tiny, [], NAMES, metric="logit_diff")
    with pytest.raises(LensSkillsError, match="known before"):
        prescreen(tiny, task, NAMES, metric="label:plural")
    found: Prescreen = prescreen(tiny, task, NAMES, metric="logit_diff")
    other = sweep(tiny, task, ["L0N6"], do=ablate("zero"), metric="logit_diff")
    with pytest.raises(LensSkillsError, match=r"L0N6 .*not prescreened"):
        found.agreement(other)
    with pytest.raises(LensSkillsError, match="cannot be ranked"):
        rank_agreement(torch.ones(2), torch.ones(2))
    with pytest.raises(LensSkillsError, match="alike"):
        rank_agreement(torch.ones(3), torch.arange(3.0))
    tiny.hook_dict["blocks.1.hook_resid_pre"].add_hook(lambda activation, hook: None)
    try:
        with pytest.raises(LensSkillsError, match="hooks of its user"):
            prescreen(tiny, task, NAMES, metric="logit_diff")
    finally:
        tiny.reset_hooks()
