"""Examples by activation against plain loops, and the Jacobian lens against two oracles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import ActivatingExamples, activating_examples, token_logits
from lens_skills.explanation.activation_quantiles import quantiles
from lens_skills.explanation.token_logits import logits_of
from lens_skills.models import as_adapter

NEURONS = ("L1N2", "L0N3", "L3N17")
TEXTS = tuple(f"The key to the {n} cabinets {v}" for n in range(7) for v in ("is", "are big"))


def examples() -> list[Example]:
    return [
        Example(id=f"e{place}", prompt=text, group=f"g{place // 2}", labels={"plural": place % 2})
        for place, text in enumerate(TEXTS)
    ]


@pytest.fixture(scope="module")
def found(tiny: Any) -> ActivatingExamples:
    return activating_examples(
        tiny, examples(), NEURONS, n_quantiles=3, per_quantile=2, lenses=("logit", "jacobian")
    )


def by_hand(hf: Any, adapter: Any, text: str, layer: int, neuron: int) -> list[float]:
    """The neuron at every token but the first, by a torch hook on the Hugging Face model."""
    seen: list[torch.Tensor] = []
    down = hf.model.layers[layer].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, :, neuron]))
    try:
        with torch.no_grad():
            hf(torch.tensor([adapter.encode(text)]))
    finally:
        handle.remove()
    return seen[0][1:].tolist()


def test_every_value_is_what_plain_pytorch_computes(
    found: ActivatingExamples, tiny: Any, tiny_hf: Any
) -> None:
    adapter = as_adapter(tiny)
    for row, (name, (layer, neuron)) in enumerate(
        zip(NEURONS, ((1, 2), (0, 3), (3, 17)), strict=True)
    ):
        rows = [by_hand(tiny_hf[0], adapter, text, layer, neuron) for text in TEXTS]
        last = [values[-1] for values in rows]
        np.testing.assert_allclose(found.activations[row].numpy(), last, atol=1e-5)
        order = sorted(range(len(TEXTS)), key=lambda place: (-last[place], place))
        thirds = (order[:5], order[5:10], order[10:])
        parts = found[name].quantiles
        assert [part.name for part in parts] == [
            "highest", "66.7–100 %", "33.3–66.7 %", "0–33.3 %", "lowest",
        ]  # fmt: skip
        members = (order[:2], *thirds, order[-2:])
        # Spread evenly over what is left of each third without the ends: 3, 5 and 2 examples.
        left = [[p for p in part if p not in (*order[:2], *order[-2:])] for part in thirds]
        shown = [[part[len(part) // 4], part[3 * len(part) // 4]] for part in left]
        wanted = (order[:2], *shown, order[-2:])
        for part, inside, places in zip(parts, members, wanted, strict=True):
            assert part.n_examples == len(inside)
            assert part.low == pytest.approx(min(last[p] for p in inside), abs=1e-5)
            assert part.high == pytest.approx(max(last[p] for p in inside), abs=1e-5)
            assert [excerpt.id for excerpt in part.excerpts] == [f"e{p}" for p in places]
            for excerpt, place in zip(part.excerpts, places, strict=True):
                assert "".join(excerpt.tokens).strip() == TEXTS[place]
                np.testing.assert_allclose(excerpt.values, rows[place], atol=1e-5)
                assert excerpt.read == len(excerpt.tokens) - 1
                assert excerpt.activation == pytest.approx(excerpt.values[-1], abs=1e-5)


def test_no_example_is_shown_twice_and_none_is_made_up() -> None:
    values = torch.tensor([0.0, 0.0, 5.0, 1.0, 0.0, 2.0, -1.0, 0.0, 0.0, 3.0])
    for n_quantiles in (1, 3, 5, 20):
        for per_quantile in (1, 2, 4, 50):
            parts = quantiles(values, n_quantiles=n_quantiles, per_quantile=per_quantile)
            places = [place for _, _, shown in parts for place in shown]
            assert len(places) == len(set(places))
            assert sorted(p for _, own, _ in parts[1:-1] for p in own.tolist()) == list(range(10))
            assert all(set(shown) <= set(members.tolist()) for _, members, shown in parts)
    assert [shown for _, _, shown in quantiles(values, n_quantiles=1, per_quantile=2)] == [
        [2, 9], [3, 4], [8, 6],
    ]  # fmt: skip
    many = quantiles(torch.zeros(5000), n_quantiles=2, per_quantile=2)  # ties: in their order
    assert [shown for _, _, shown in many] == [[0, 1], [626, 1875], [3124, 4373], [4998, 4999]]
    (only, whole) = quantiles(values[:1], n_quantiles=5, per_quantile=4)
    assert only[0] == "highest"
    assert only[2] == [0]
    assert whole[2] == []


def test_the_read_token_is_where_the_position_says(tiny: Any) -> None:
    some = examples()[:4]
    for position, place in ((-2, -2), (1, 0), (ls.span("key"), None), ("mean", None), (0, None)):
        found = activating_examples(tiny, some, ["L1N2"], position=position, lenses=())
        for part in found["L1N2"].quantiles:
            for excerpt in part.excerpts:
                if position in ("mean", 0):  # 0 is the special token, which is left out
                    assert excerpt.read is None
                    continue
                assert excerpt.read is not None
                assert excerpt.values[excerpt.read] == pytest.approx(excerpt.activation, abs=1e-5)
                if place is not None:
                    assert excerpt.read == place % len(excerpt.tokens)
    scored = activating_examples(tiny, some, ["L1N2"], lenses=())
    assert scored.position == "last"


def test_correlations_are_numpys(found: ActivatingExamples) -> None:
    wanted = np.corrcoef(found.activations.double().numpy())
    np.testing.assert_allclose(found.correlations().to_numpy(), wanted, atol=1e-9)
    assert list(found.correlations().columns) == list(NEURONS)


def test_it_is_read_back_and_printed(found: ActivatingExamples, tmp_path: Path) -> None:
    again = ls.load(found.save(tmp_path / "examples"))
    assert repr(again) == repr(found)
    assert again.frame().equals(found.frame())
    torch.testing.assert_close(again.activations, found.activations)
    assert max(len(line) for line in repr(found).splitlines()) <= 80
    assert list(found.examples.columns) == ["id", "group", "label:plural"]
    with pytest.raises(LensSkillsError, match="'L9N9' was not read"):
        found["L9N9"]
    with pytest.raises(LensSkillsError, match="no 'middle' examples"):
        found["L1N2"]["middle"]


def test_a_neuron_that_does_the_same_everywhere_is_said_to(tiny: Any) -> None:
    same = [Example(id=str(n), prompt="The key", group=str(n)) for n in range(6)]
    found = activating_examples(tiny, same, ["L1N2"], per_quantile=1, lenses=())
    assert "L1N2: the same on all examples" in found.notes[0]
    assert found["L1N2"]["highest"].excerpts[0].id == "0"
    assert np.isnan(found.correlations().to_numpy()).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"neurons": []}, "none were named"),
        ({"neurons": ["L9N1"]}, "no unit 'L9N1'"),
        ({"neurons": ["L1H1"]}, "more than one number"),
        ({"neurons": ["L1N1", "L1N1"]}, "named twice"),
        ({"examples": []}, "the task is empty"),
        ({"position": "all"}, "several numbers per example"),
        ({"n_quantiles": 0}, "n_quantiles= is how many"),
        ({"per_quantile": 0}, "per_quantile= is how many"),
        ({"n_tokens": 0}, "n_tokens= is how many"),
        ({"lenses": ("tuned",)}, "no lens 'tuned'.*logit, jacobian"),
    ],
)
def test_refusals(tiny: Any, change: dict[str, Any], says: str) -> None:
    asked = {"examples": examples(), "neurons": ["L1N2"]} | change
    with pytest.raises(LensSkillsError, match=says):
        activating_examples(tiny, **asked)


def test_units_that_write_no_tokens_are_shown_without(tiny: Any) -> None:
    found = activating_examples(tiny, examples(), ["L1R2"], lenses=("logit",))
    assert found["L1R2"].writes == ()
    assert "no token is written" in found.notes[0]


# ── the Jacobian lens ────────────────────────────────────────────────────────────────────────────


def derivative(hf: Any, tokens: list[int], layer: int, row: torch.Tensor) -> torch.Tensor:
    """d (final residual at the last token) along ``row`` after block ``layer``, by autograd."""

    def final(push: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def add(module: Any, args: Any, out: Any) -> Any:
            whole = out if isinstance(out, torch.Tensor) else out[0]
            moved = torch.cat([whole[:, :-1], (whole[:, -1] + push)[:, None]], dim=1)
            return moved if isinstance(out, torch.Tensor) else (moved, *out[1:])

        handles = [
            hf.model.layers[layer].register_forward_hook(add),
            hf.model.norm.register_forward_pre_hook(lambda m, args: seen.append(args[0][0, -1])),
        ]
        try:
            hf(torch.tensor([tokens]))
        finally:
            for handle in handles:
                handle.remove()
        return seen[0]

    whole: torch.Tensor = torch.autograd.functional.jacobian(final, torch.zeros(len(row)))
    return whole.double() @ row.double()


@pytest.mark.parametrize("unit", [(0, 3), (1, 17), (3, 5)])
def test_the_jacobian_lens_is_what_autograd_computes(
    tiny: Any, tiny_hf: Any, unit: tuple[int, int]
) -> None:
    hf, adapter = tiny_hf[0], as_adapter(tiny)
    over = examples()[:5]
    layer, neuron = unit
    row = hf.model.layers[layer].mlp.down_proj.weight[:, neuron].detach()
    tokens = [adapter.encode(example.prompt) for example in over]
    written = torch.stack([derivative(hf, own, layer, row) for own in tokens]).mean(0)
    inverse = []
    for own in tokens:
        seen: list[torch.Tensor] = []
        handle = hf.model.norm.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0][0, -1])
        )
        with torch.no_grad():
            hf(torch.tensor([own]))
        handle.remove()
        square = seen[0].double().square().mean() + hf.model.norm.variance_epsilon
        inverse.append(1 / square.sqrt())
    scaled = written * hf.model.norm.weight.detach().double() * torch.stack(inverse).mean()
    logits = hf.lm_head.weight.detach().double() @ scaled
    logits = logits - logits.mean()
    found = token_logits(tiny, unit, k=len(logits), over=over, lens="jacobian")
    order = logits.argsort(descending=True)
    numbers = torch.tensor([logit for _, logit in found.promoted], dtype=torch.float64)
    scale = float(logits.abs().max())
    torch.testing.assert_close(numbers, logits[order], atol=2e-3 * scale, rtol=0)
    assert found.spread == pytest.approx(logits.std(correction=0).item(), rel=2e-3)


def test_in_the_last_layer_both_lenses_are_one(tiny: Any) -> None:
    logit, jacobian = logits_of(
        as_adapter(tiny), _units(tiny, ["L3N4"]), lenses=("logit", "jacobian")
    )[0]
    assert logit.promoted == jacobian.promoted
    assert logit.spread == jacobian.spread
    assert (logit.lens, jacobian.lens) == ("logit", "jacobian")
    assert "Jacobian lens" in repr(jacobian)
    assert "to first order" in repr(jacobian)


def test_many_neurons_give_what_each_gives_alone(tiny: Any) -> None:
    names = [f"L1N{n}" for n in range(40)]  # more than run side by side
    together = logits_of(as_adapter(tiny), _units(tiny, names), lenses=("jacobian",))
    for place in (0, 31, 32, 39):
        alone = token_logits(tiny, names[place], lens="jacobian")
        assert alone.spread == pytest.approx(together[place][0].spread, rel=1e-4)


def _units(model: Any, names: list[str]) -> Any:
    from lens_skills.activations import parse_components

    return parse_components(as_adapter(model), names)


def test_transformer_lenss_own_lens_agrees(tiny_bridge: Any) -> None:
    """Its estimator with one valid position a prompt is J at that token."""
    module = pytest.importorskip("transformer_lens.tools.analysis.jacobian_lens")
    adapter = as_adapter(tiny_bridge)
    texts = TEXTS[::2][:3]
    lengths = {len(adapter.encode(text)) for text in texts}
    assert len(lengths) == 1
    (length,) = lengths
    longer = [f"{text} is" for text in texts]  # the last position is left out of the fit
    assert {len(adapter.encode(text)) for text in longer} == {length + 1}
    fitted = module.JacobianLens.fit(
        tiny_bridge,
        longer,
        corpus="test",
        skip_first_positions=length - 1,
        show_progress=False,
        dim_batch=32,
    )
    over = [Example(id=text, prompt=text) for text in texts]
    for layer, neuron in ((0, 3), (1, 17), (2, 8)):
        row = adapter.weight_out(layer)[neuron].detach().double()
        theirs = fitted.jacobians[layer].double() @ row
        ours = _written(adapter, over, layer, row)
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-3
        assert float((ours - row).norm() / row.norm()) > 0.05  # J is not the identity here


def _written(adapter: Any, over: list[Example], layer: int, row: torch.Tensor) -> torch.Tensor:
    from lens_skills.explanation.token_logits import _some_pass, through_later_layers

    suffix = _some_pass(adapter, over, check=True)
    return through_later_layers(suffix, row[None], [layer])[0]


def test_a_model_whose_layers_cannot_run_alone_is_told(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_skills.explanation import token_logits as verb
    from lens_skills.models.partial_forward import CannotResume

    def refuse(*args: Any, **options: Any) -> Any:
        if options["check"]:
            raise CannotResume("its blocks talk to each other")
        return kept(*args, **options)

    module = __import__("sys").modules[verb.__module__]
    kept = module.prefill
    monkeypatch.setattr(module, "prefill", refuse)
    with pytest.raises(LensSkillsError, match="its blocks talk to each other"):
        token_logits(tiny, "L1N2", lens="jacobian")
    found = activating_examples(tiny, examples(), ["L1N2"], lenses=("logit", "jacobian"))
    assert [one.lens for one in found["L1N2"].writes] == ["logit"]
    assert "no Jacobian lens" in found.notes[0]
