"""Features of a dictionary are units like neurons: read, edited, scored, verified, explained.

Oracles: hooks written by hand; the MLP itself written down as a transcoder, whose features are its
neurons; a feature that is planted, and one that is on as often and writes where nothing reads.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations.forward import encode_examples
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.edits import edited_torch, hooks_of
from lens_skills.models import as_adapter, keep_activation
from tests.models.conftest import IMPLEMENTATIONS
from tests.models.families import build, tokenizer

TEXT = "The keys to the cabinet"
PLACES = {
    "blocks.1.hook_resid_post": "",
    "blocks.1.hook_resid_pre": "",
    "blocks.2.hook_mlp_out": "",
    "blocks.1.attn.hook_z": "",
    "blocks.2.ln2.hook_normalized": "blocks.2.hook_mlp_out",
}


def random_dictionary(hook_name: str, hook_name_out: str = "", **options: Any) -> ls.Dictionary:
    """Twenty features of random directions, half of them on, scaled like the tiny model."""
    draw = torch.Generator().manual_seed(len(hook_name))
    enc, dec = (torch.randn(shape, generator=draw) for shape in ((32, 20), (20, 32)))
    bias = torch.randn(20, generator=draw)
    return ls.Dictionary(
        enc / 6, dec / 4, hook_name, hook_name_out, b_enc=bias, b_dec=dec.mean(0), **options
    )


def by_hand(one: ls.Dictionary, feature: int, value: float | None) -> list[tuple[str, Any]]:
    """Hooks that put a feature to ``value`` at the last column, in plain arithmetic."""
    held: dict[str, Tensor] = {}
    b_enc, b_dec = one.b_enc, one.b_dec
    assert b_enc is not None
    assert b_dec is not None
    b_dec = b_dec if one.apply_b_dec_to_input else torch.zeros(one.d_in)

    def read(x: Tensor, hook: Any) -> None:
        last = x[:, -1].flatten(1)
        held["f"] = torch.relu((last - b_dec) @ one.W_enc + b_enc)[:, feature]

    def write(x: Tensor, hook: Any) -> Tensor:
        change = (held["f"] if value is None else value) - held["f"]
        new = x.clone().flatten(2)
        new[:, -1] = new[:, -1] + change[:, None] * one.W_dec[feature]
        return new.view_as(x)

    return [(one.hook_name, read), (one.hook_name_out, write)]


def logits(model: Any, tokens: Tensor, hooks: Any = ()) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=list(hooks))


@pytest.fixture(scope="module")
def task() -> ls.Task:
    return ls.tasks.agreement(n=6)


@pytest.mark.parametrize("place", PLACES)
def test_edits_equal_hooks_written_by_hand(tiny: Any, place: str) -> None:
    one = random_dictionary(place, PLACES[place])
    model, tokens = ls.with_features(tiny, one), tiny.to_tokens(TEXT)
    for value, do in ((0.0, ls.ablate("zero")), (2.5, ls.clamp(to=2.5))):
        wanted = logits(tiny, tokens, by_hand(one, 3, value))
        found = logits(tiny, tokens, hooks_of(do, model, [f"L{one.layer}F3"]))
        if value:  # it may be off as it is
            assert (wanted - logits(tiny, tokens)).abs().max() > 1e-3
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        with ls.edited(model, [f"L{one.layer}F3"], do), torch.no_grad():
            torch.testing.assert_close(tiny(tokens), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_swept_effects_equal_hooks_written_by_hand(tiny: Any, place: str, task: ls.Task) -> None:
    one = random_dictionary(place, PLACES[place])
    model, names = ls.with_features(tiny, one), [f"L{one.layer}F{n}" for n in range(6)]
    with ls.config(batch_size=4, edit_rows=7):
        found = ls.sweep(model, task, names, do=ls.clamp(to=1.5), metric="logit_diff")
    assert found.provenance["whole_passes"] is None
    for feature, row in enumerate(found.total):
        for item, effect in zip(
            encode_examples(as_adapter(tiny), task, answers=True), row, strict=True
        ):
            tokens = torch.tensor([item.prompt_tokens.tolist()])
            pair = [*(item.answer_tokens or ()), *(item.foil_tokens or ())]
            edited = logits(tiny, tokens, by_hand(one, feature, 1.5))[0, -1, pair]
            change = (edited - logits(tiny, tokens)[0, -1, pair]).diff().neg()
            assert float(effect) == pytest.approx(float(change), abs=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_without_a_change_logits_are_the_very_same(tiny: Any, place: str, task: ls.Task) -> None:
    one = random_dictionary(place, PLACES[place])
    model, tokens = ls.with_features(tiny, one), tiny.to_tokens(TEXT)
    clean = logits(tiny, tokens)
    every = [f"L{one.layer}F{n}" for n in range(20)]
    assert torch.equal(logits(tiny, tokens, hooks_of(ls.scale(by=1), model, every)), clean)
    found = ls.sweep(model, task, every, do=ls.scale(by=1), metric="logit_diff")
    assert bool((found.total == 0).all())
    read = ls.sweep(tiny, task, ["L0N1"], do=ls.scale(by=0), metric="logit_diff")
    assert torch.equal(found.clean, read.clean)


def test_effects_are_linear_in_the_decoder(tiny: Any) -> None:
    """What two changes write is the sum of what each writes, and twice a change twice that."""
    one = random_dictionary("blocks.1.hook_resid_post")
    x = torch.randn(2, 3, 32)
    a, b = torch.randn(2, 2, 3, 20)
    whole = one.written(a + 2 * b, x)
    torch.testing.assert_close(whole, one.written(a, x) + 2 * one.written(b, x))
    torch.testing.assert_close(one.written(a, x), a @ one.W_dec)


def test_gradients_expect_what_a_small_change_does(tiny: Any, task: ls.Task) -> None:
    """Also where another dictionary stands above: what it reads is not counted twice."""
    below, above = (
        random_dictionary("blocks.0.hook_resid_post"),
        random_dictionary("blocks.2.hook_resid_post"),
    )
    units = [f"L0F{n}" for n in range(20)]
    small = ls.steer(by=1e-3, over=task)
    one = ls.with_features(tiny, below)
    effects = ls.sweep(one, task, units, do=small, metric="logit_diff").total.mean(1)
    for model in (one, ls.with_features(tiny, below, above)):
        expected = ls.prescreen(model, task, "all", at="features", metric="logit_diff", do=small)
        assert expected.predicted is not None
        found = expected.predicted[:20].mean(1)
        assert float(torch.corrcoef(torch.stack([found, effects]))[0, 1]) > 0.99


def test_the_slope_by_a_feature_is_that_by_what_it_writes(tiny: Any) -> None:
    """On a whole pass, where the hook keeps what it is given and gives it back."""
    one = random_dictionary("blocks.1.hook_resid_post")
    model, tokens, kept = ls.with_features(tiny, one), tiny.to_tokens(TEXT), {}
    names = [one.hook_name, one.hook_point]
    editors = {
        name: keep_activation(kept, name, lambda x: x if x.requires_grad else x.requires_grad_())
        for name in names
    }
    mask, at = torch.ones_like(tokens, dtype=torch.bool), torch.tensor([[tokens.shape[1] - 1]])
    found = model.forward(
        tokens, mask, readers={}, logits_at=at, editors=editors, differentiable=True
    )
    assert found is not None
    by_stream, by_feature = torch.autograd.grad(found[0, 0, 5], [kept[name] for name in names])
    assert by_feature.abs().max() > 1e-4
    torch.testing.assert_close(by_feature, by_stream @ one.W_dec.T, atol=1e-6, rtol=1e-4)


def test_a_model_is_left_as_it_was_and_has_a_fingerprint_of_its_own(tiny: Any) -> None:
    one = random_dictionary("blocks.1.hook_resid_post")
    before = as_adapter(tiny).fingerprint()
    model = ls.with_features(tiny, one)
    assert as_adapter(tiny).fingerprint() == before != model.fingerprint()
    assert model.without_features().fingerprint() == before
    assert model.without_features().name == as_adapter(tiny).name
    again = ls.with_features(tiny, random_dictionary("blocks.1.hook_resid_post"))
    assert again.fingerprint() == model.fingerprint()
    other = ls.with_features(tiny, random_dictionary("blocks.1.hook_resid_post", name="mine"))
    assert other.fingerprint() != model.fingerprint()


def as_transcoders(model: Any) -> list[ls.Dictionary]:
    """Each MLP of a ReLU model as a transcoder; the norm before it is folded in."""
    found = []
    for layer, block in enumerate(model.blocks):
        norm, mlp = block.ln2, block.mlp
        w, b = (getattr(norm, *names) for names in (("w", None), ("b", None)))
        w, b = norm.weight if w is None else w, norm.bias if b is None else b
        w_in, w_out = mlp.W_in.detach(), mlp.W_out.detach()
        reads, writes = f"blocks.{layer}.ln2.hook_normalized", f"blocks.{layer}.hook_mlp_out"
        bias = (b @ w_in + mlp.b_in).detach()
        found.append(ls.Dictionary(w.detach()[:, None] * w_in, w_out, reads, writes, b_enc=bias))
    return found


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_mlp_written_down_as_a_transcoder_is_its_neurons(implementation: str) -> None:
    """Scores, effects, verdicts and tokens of features are those of the neurons."""
    plain = build("gpt2", activation_function="relu", n_layer=2, n_embd=16)
    model = ls.load_model(plain, implementation=implementation, tokenizer=tokenizer())
    featured = ls.with_features(model, *as_transcoders(model))
    explore, intervene = ls.tasks.agreement(n=64, distractors=["none"]).split(0.5, 0.5, seed=0)
    few: dict[str, Any] = {"metrics": "label:plural", "n_permutations": 20, "n_controls": 0}
    neurons, features = (
        ls.score(model, explore, **few),
        ls.score(featured, explore, at="features", **few),
    )
    assert neurons.n_units == features.n_units == 2 * 64
    torch.testing.assert_close(features.r, neurons.r, atol=2e-4, rtol=0, equal_nan=True)
    torch.testing.assert_close(features.mean, neurons.mean, atol=1e-5, rtol=1e-4)
    do = ls.ablate("mean", over=explore)
    top = neurons["label:plural"].top(3).names
    named = [name.replace("N", "F") for name in top]
    options: dict[str, Any] = {"do": do, "metric": "logit_diff", "seed": 0}
    options |= {"controls": ls.controls(sets=8, neurons=None)}
    one, other = (
        ls.verify(model, intervene, top, **options),
        ls.verify(featured, intervene, named, **options),
    )
    wanted, found = one.frame(), other.frame()
    assert [name.replace("F", "N") for name in found["name"]] == list(wanted["name"])
    numbers = wanted.select_dtypes("number").columns
    assert {"effect"} <= set(numbers)
    for column in numbers:
        assert found[column].to_numpy() == pytest.approx(
            wanted[column].to_numpy(), abs=2e-4, rel=2e-3, nan_ok=True
        ), column
    for lens in ("logit", "jacobian"):
        own = ls.token_logits(model, top[0], lens=lens)
        as_feature = ls.token_logits(featured, named[0], lens=lens)
        assert dict(as_feature.promoted) == pytest.approx(dict(own.promoted), abs=1e-4)


def told_by_the_last_word() -> ls.Task:
    """Many beginnings, each as a group, and which of two words comes last."""
    made = []
    for number, one in enumerate(ls.tasks.agreement(n=120, distractors=["none"])):
        for plural in (0, 1):
            made.append(
                ls.Example(
                    id=f"{number} {plural}",
                    prompt=f"{one.prompt} near the {'boys' if plural else 'boy'}",
                    answer=" are" if plural else " is",
                    foil=" is" if plural else " are",
                    group=str(number),
                    labels={"plural": plural},
                )
            )
    return ls.Task("last word", made)


def planted(model: Any, explore: ls.Task) -> ls.Dictionary:
    """Forty features at the top of the stream; 7 and 8 read the number of the subject alike.

    7 writes what tells plural verbs from singular ones, 8 at a right angle to it and to every
    difference between an answer and its foil; the others are random.
    """
    adapter = as_adapter(model)
    last = adapter.n_layers - 1
    site = f"blocks.{last}.hook_resid_post"
    made = ls.score(model, explore, metrics="label:plural", at="hook_resid_post", layers=last)
    reads = made["label:plural"].r.flatten() / made.std[0].clamp(min=1e-9)
    draw = torch.Generator().manual_seed(3)
    enc, dec = (torch.randn(shape, generator=draw) for shape in ((32, 40), (40, 32)))
    enc, dec = enc / 40, dec / 20
    reads = (reads / reads.norm()).float().reshape(32)
    enc[:, 7] = enc[:, 8] = reads
    unembed, gain = adapter.unembed_vectors()[0].float(), model.ln_final.w.detach()
    ids = [
        ((item.answer_tokens or [0])[0], (item.foil_tokens or [0])[0])
        for item in encode_examples(adapter, explore, answers=True)
    ]
    apart = torch.stack([gain * (unembed[:, a] - unembed[:, f]) for a, f in ids])
    plural = torch.tensor([float(one.labels["plural"]) for one in explore])
    writes = ((2 * plural - 1)[:, None] * apart).mean(0)
    dec[7] = writes / writes.norm()
    span = torch.linalg.svd(apart, full_matrices=False)
    own = span.Vh[1e-4 * span.S[0] < span.S]
    side = torch.randn(32, generator=draw)
    side = side - own.T @ (own @ side)
    dec[8] = side / side.norm()
    return ls.Dictionary(enc, dec, site, b_enc=torch.zeros(40), apply_b_dec_to_input=False)


def test_the_planted_feature_is_found_and_its_decoy_is_not(tiny_hooked: Any) -> None:
    explore, confirm, intervene = told_by_the_last_word().split(0.4, 0.3, 0.3, seed=0)
    model = ls.with_features(tiny_hooked, planted(tiny_hooked, explore))
    few: dict[str, Any] = {"metrics": "label:plural", "at": "features", "n_permutations": 1000}
    chosen = ls.select(ls.score(model, explore, **few), ls.score(model, confirm, **few))
    assert {"L3F7", "L3F8"} <= set(chosen.names), chosen
    verdict = ls.verify(
        model, intervene, ["L3F7", "L3F8"], do=ls.ablate("zero"), metric="logit_diff",
        controls=ls.controls(sets=0),
    )  # fmt: skip
    table = verdict.frame().set_index("name")
    assert table.loc["L3F7", "word"] == "supports", verdict
    assert table.loc["L3F8", "word"] != "supports", verdict
    assert abs(table.loc["L3F8", "effect"]) < 0.1 * abs(table.loc["L3F7", "effect"])


def test_what_does_not_fit_the_model_is_refused(tiny: Any, tiny_hf: Any) -> None:
    def wide(width: int, place: str, **options: Any) -> ls.Dictionary:
        return ls.Dictionary(torch.ones(width, 4), torch.ones(4, width), place, **options)

    site = "blocks.1.hook_resid_post"
    for one, said in (
        (wide(16, site), "made for width 16 at blocks.1.hook_resid_post, and .* has 32"),
        (wide(32, "blocks.9.hook_resid_post"), "of layer 9, and .* has layers 0 to 3"),
        (wide(32, "blocks.1.hook_resid_pots"), "Did you mean 'blocks.1.hook_resid_post'"),
        (wide(32, site, name="hook_resid_post"), "it is a hook point of"),
        (
            ls.Dictionary(torch.ones(32, 4), torch.ones(4, 32), site, "blocks.1.hook_mlp_out"),
            "reaches blocks.1.hook_mlp_out before",
        ),
        ("sae", "'sae' is no dictionary"),
    ):
        with pytest.raises(LensSkillsError, match=said):
            ls.with_features(tiny, one)  # type: ignore[arg-type]
    with pytest.raises(LensSkillsError, match="no dictionary is given"):
        ls.with_features(tiny)
    with pytest.raises(LensSkillsError, match="two dictionaries are called"):
        ls.with_features(tiny, wide(32, site), wide(32, "blocks.1.hook_resid_pre"))
    with pytest.warns(UserWarning, match="was trained on 'gpt2-small'"):
        ls.with_features(tiny, wide(32, site, model="gpt2-small"))
    model = ls.with_features(tiny, wide(32, site))
    with pytest.raises(LensSkillsError, match=r"no unit 'L1F4' .* has 4 features at features"):
        ls.sweep(model, ls.tasks.agreement(n=6), ["L1F4"], do=ls.scale(by=0), metric="logit_diff")
    with pytest.raises(LensSkillsError, match="'features' is missing in layers"):
        ls.score(
            model, ls.tasks.agreement(n=6), metrics="label:plural", at="features", layers=[0, 1]
        )
    with pytest.raises(LensSkillsError, match="read without a dictionary"):
        ls.score(tiny, ls.tasks.agreement(n=6), metrics="label:plural", at="features")
    with (
        pytest.raises(LensSkillsError, match="no module of a Hugging Face"),
        edited_torch(copy.deepcopy(tiny_hf[0]), ["L1F1"], ls.scale(by=0), adapter=model),
    ):
        pass
    wider = ls.Dictionary(torch.ones(32, 5), torch.ones(5, 32), "blocks.2.hook_resid_post")
    both = ls.with_features(model, wider)
    with pytest.raises(LensSkillsError, match="of several sizes are called 'features'"):
        ls.score(both, ls.tasks.agreement(n=6), metrics="label:plural", at="features")


def test_scaled_writes_have_no_one_direction(tiny_hooked: Any) -> None:
    one = random_dictionary("blocks.1.hook_resid_post", normalize_activations="layer_norm")
    model = ls.with_features(tiny_hooked, one)
    with pytest.raises(LensSkillsError, match="scales what it writes token by token"):
        ls.token_logits(model, "L1F3")
    text = ls.Example(id="a", prompt=TEXT, answer=" is", foil=" are")
    found = ls.sweep(model, [text], ["L1F3"], do=ls.clamp(to=3), metric="logit_diff")
    assert abs(float(found.total)) > 0


def test_results_of_one_dictionary_are_refused_with_another(tiny: Any) -> None:
    task = ls.tasks.agreement(n=192)
    one = ls.with_features(tiny, random_dictionary("blocks.1.hook_resid_post"))
    few: dict[str, Any] = {"metrics": "label:plural", "at": "features", "n_permutations": 20}
    explore, confirm = task.split(0.5, 0.5, seed=0)
    made = ls.score(one, explore, **few, n_controls=99)
    about = made.provenance["features"]["blocks.1.features"]
    assert about["reads"] == about["writes"] == "blocks.1.hook_resid_post"
    assert made.provenance["weights"] == as_adapter(tiny).fingerprint()
    chosen = ls.select(made, ls.score(one, confirm, **few, n_controls=99), exploratory=True)
    other = ls.with_features(tiny, random_dictionary("blocks.1.hook_resid_pre"))
    with pytest.raises(LensSkillsError, match="another model"):
        ls.sweep(other, task, chosen, do=ls.scale(by=0), metric="logit_diff")
