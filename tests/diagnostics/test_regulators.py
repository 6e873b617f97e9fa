"""Confidence diagnostics: planted regulators are told from a planted skill, in both directions."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations.forward import encode_examples
from lens_skills.diagnostics import Regulators, confidence_regulators
from lens_skills.diagnostics.neutral_text import cut_texts, read_neutral_text
from lens_skills.diagnostics.norm_mediation import mediate
from lens_skills.diagnostics.regulators import (
    NEITHER,
    REGULATOR,
    SKILL,
    RegulatorMeasures,
    classify,
    divergence_from,
)
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.stats.effect_tests import cluster_interval, equivalent
from lens_skills.tasks.word_lists import neutral_texts
from tests.planted import plant, separating_direction

NULL, FREQUENT, CARRIER = (3, 7), (3, 11), (0, 5)
TEXTS = neutral_texts()[:24]


def make_task(n: int = 48) -> ls.Task:
    """Half the prompts end in "boys", half in "girls"; the group is what stands before."""
    words = ("key", "table", "doctor", "author", "store", "drink", "cabinet", "keys")
    examples = []
    for place in range(n // 2):
        before = f"The {words[place % 8]} near the {words[(place * 3 + place // 8) % 8]} and the"
        for word, answer, foil in (("boys", " are", " is"), ("girls", " is", " are")):
            labels, group = {"boys": int(word == "boys")}, f"g{place}"
            texts = {"prompt": f"{before} {word}", "answer": answer, "foil": foil}
            example = ls.Example(id=f"{place} {word}", **texts, labels=labels, group=group)
            examples.append(example)
    return ls.Task("boys and girls", examples)


def unembedding(model: Any) -> Tensor:
    """The projection as a tensor that may be written, ``[d_model d_vocab]``."""
    inner = getattr(model, "original_model", None)
    weight = model.unembed.W_U if inner is None else inner.lm_head.weight.T
    return weight.detach()


@pytest.fixture(scope="module")
def planted(request: pytest.FixtureRequest, tiny_hf: tuple[Any, Any]) -> Any:
    """A null-space writer, a frequency writer and a skill neuron in one model, each planted."""
    model = copy.deepcopy(request.getfixturevalue(f"tiny_{request.param}"))
    gain = tiny_hf[0].model.norm.weight.detach()
    generator = torch.Generator().manual_seed(5)
    null, fires, often = torch.randn(3, 32, generator=generator)
    with torch.no_grad():
        weight = unembedding(model)
        blind = gain * null / (gain * null).norm()
        weight.sub_(blind[:, None] * (blind @ weight))  # nothing along ``null`` reaches a logit
    plant(model, *NULL, direction=fires, strength=2.0, writes=12 * null / null.norm())
    adapter = as_adapter(model)
    found = read_neutral_text(adapter, TEXTS, torch.tensor([NULL]), ls.confidence())
    pattern = found.unigram.log()
    pattern = (pattern - pattern.mean()).float()
    effective = gain[:, None] * (weight - weight.mean(1, keepdim=True))
    along = torch.linalg.pinv(effective.T.double(), rtol=1e-3) @ pattern.double()
    plant(
        model, *FREQUENT, direction=often, strength=2.0, writes=3 * (along / along.norm()).float()
    )
    task = make_task()
    encoded = encode_examples(adapter, task, answers=True)
    prompts = [item.prompt_tokens.tolist() for item in encoded]
    boys, others = prompts[::2], prompts[1::2]
    negative = [row[:end] for row in others for end in range(2, len(row) + 1)]
    texts = [adapter.encode(text) for text in TEXTS]
    negative += [row[:end] for row in texts for end in range(2, len(row) + 1)]
    direction = separating_direction(model, CARRIER[0], boys, negative)
    item = encoded[0]
    push = weight[:, item.answer_tokens[0]] - weight[:, item.foil_tokens[0]]
    plant(model, *CARRIER, direction=direction, strength=6.0, writes=3 * push / push.norm())
    return model


@pytest.fixture(scope="module")
def diagnosed(planted: Any) -> Regulators:
    rows = torch.tensor([NULL, FREQUENT, CARRIER, (2, 30)])
    return confidence_regulators(
        planted, make_task(), rows, metric=ls.logit_diff(), neutral=TEXTS, n_effects=48, seed=0
    )


both = pytest.mark.parametrize("planted", ["hooked", "bridge"], indirect=True)


@both
def test_planted_regulators_are_flagged_and_a_planted_skill_is_not(diagnosed: Regulators) -> None:
    null, frequent, carrier, other = diagnosed.frame().to_dict("records")
    assert null["word"] == REGULATOR
    assert null["null_share"] > 0.999
    assert null["mediated"] > 0.99
    assert null["log_variance_percentile"] < 0.03
    assert frequent["word"] == REGULATOR
    assert frequent["null_share"] < 0.5
    assert abs(frequent["frequency"]) > 0.8
    assert null["frequency"] == 0
    assert carrier["word"] == SKILL
    assert carrier["effect"] != 0
    assert other["word"] == NEITHER


@both
def test_without_the_planted_null_space_nothing_is_flagged(
    planted: Any, request: pytest.FixtureRequest
) -> None:
    """The same neuron, writing as much where the logits can see it, is no regulator."""
    other = copy.deepcopy(planted)
    seen = unembedding(other)[:, 40]
    with torch.no_grad():
        other.blocks[NULL[0]].mlp.W_out[NULL[1]].copy_(12 * seen / seen.norm())
    found = confidence_regulators(
        other, make_task(), [NULL], metric=ls.logit_diff(), neutral=TEXTS, seed=0
    )
    row = found.frame().to_dict("records")[0]
    assert row["norm_percentile"] > 0.95
    assert row["null_share"] < 0.1
    assert row["word"] != REGULATOR


def oracle(model: Any, tokens: list[int], layer: int, neuron: int, to: float) -> dict[str, Tensor]:
    """Logits of the last token: clean, ablated, and with the last residual moved; plain passes."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def look(activation: Tensor, hook: Any) -> None:
            seen[name] = activation.detach().clone()

        return look

    def ablate(activation: Tensor, hook: Any) -> Tensor:
        new = activation.clone()
        new[:, -1, neuron] = to
        return new

    post, last = f"blocks.{layer}.mlp.hook_post", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    rows = torch.tensor([tokens])
    with torch.no_grad():
        hooks = [(post, keep("post")), (last, keep("final"))]
        clean = model.run_with_hooks(rows, fwd_hooks=hooks)[0, -1]
        total = model.run_with_hooks(rows, fwd_hooks=[(post, ablate)])[0, -1]
        write = model.blocks[layer].mlp.W_out[neuron].detach()
        added = (to - seen["post"][0, -1, neuron]) * write

        def move(activation: Tensor, hook: Any) -> Tensor:
            new = activation.clone()
            new[:, -1] += added
            return new

        direct = model.run_with_hooks(rows, fwd_hooks=[(last, move)])[0, -1]
    return {"clean": clean, "total": total, "direct": direct, "added": added, **seen}


def test_every_path_is_that_of_plain_passes(tiny: Any, tiny_hf: tuple[Any, Any]) -> None:
    adapter, task = as_adapter(tiny), make_task(6)
    rows, to = torch.tensor([[0, 3], [2, 9], [3, 4]]), torch.tensor([0.3, -0.2, 1.0])
    outcomes = {"metric": ls.logit_diff(), "entropy": ls.confidence("entropy")}
    with ls.config(batch_size=4):
        found = mediate(adapter, task, rows, to, outcomes, answers=True, n_paths=2)
    norm = tiny_hf[0].model.norm.weight.detach()
    weight = tiny_hf[0].lm_head.weight.detach()
    for place, item in enumerate(encode_examples(adapter, task, answers=True)):
        pair = [item.answer_tokens[0], item.foil_tokens[0]]
        for spot, (layer, neuron) in enumerate(rows.tolist()):
            at = oracle(tiny, item.prompt_tokens.tolist(), layer, neuron, float(to[spot]))
            final = at["final"][0, -1]
            scale = (final.square().mean() + tiny_hf[0].config.rms_norm_eps).sqrt()
            at["frozen"] = at["clean"] + weight @ (at["added"] / scale * norm)
            for path in ("total", "direct", "frozen"):
                if spot == 2 and path != "total":
                    assert bool(found.change[path]["metric"][spot].isnan().all())
                    continue
                got = float(found.change[path]["metric"][spot, place])
                moved = [float(at[name][pair[0]] - at[name][pair[1]]) for name in (path, "clean")]
                assert got == pytest.approx(moved[0] - moved[1], abs=2e-4)
                if spot < 2:
                    p, q = (at[name].double().softmax(-1) for name in (path, "clean"))
                    wanted = -(p * p.log()).sum() + (q * q.log()).sum()
                    got = float(found.change[path]["entropy"][spot, place])
                    assert got == pytest.approx(float(wanted), abs=2e-4)


def test_in_the_last_layer_total_and_direct_are_one(tiny: Any) -> None:
    rows = torch.tensor([[3, 4], [1, 4]])
    found = mediate(
        as_adapter(tiny),
        make_task(6),
        rows,
        torch.zeros(2),
        {"metric": ls.confidence()},
        answers=True,
    )
    total, direct = found.change["total"]["metric"], found.change["direct"]["metric"]
    torch.testing.assert_close(total[0], direct[0], atol=1e-6, rtol=0)
    assert float((total[1] - direct[1]).abs().max()) > 1e-5


def test_neutral_text_is_read_at_every_token(tiny: Any) -> None:
    """Activations, confidence and the mean prediction of a plain pass over each text alone."""
    adapter, rows = as_adapter(tiny), torch.tensor([[0, 3], [2, 9]])
    found = read_neutral_text(adapter, TEXTS[:5], rows, ls.confidence())
    total, n = torch.zeros(adapter.d_vocab, dtype=torch.float64), 0
    for place, text in enumerate(TEXTS[:5]):
        logits, cache = tiny.run_with_cache(tiny.to_tokens(text))
        here = [k for k, group in enumerate(found.groups) if group == f"text {place}"]
        first = logits.shape[1] - len(here)
        assert first == int(tiny.to_tokens(text)[0, 0] == tiny.tokenizer.bos_token_id)
        shares = logits[0, first:].double().softmax(-1).detach()
        torch.testing.assert_close(found.metric[here], shares.amax(-1), atol=1e-5, rtol=0)
        for spot, (layer, neuron) in enumerate(rows.tolist()):
            post = cache[f"blocks.{layer}.mlp.hook_post"][0, first:, neuron].double().detach()
            torch.testing.assert_close(found.values[spot][here], post, atol=1e-4, rtol=1e-3)
        total, n = total + shares.sum(0), n + len(shares)
    torch.testing.assert_close(found.unigram, total / n, atol=1e-6, rtol=0)
    needs = read_neutral_text(adapter, TEXTS[:5], rows, ls.logit_diff())
    assert (needs.metric_name, bool((needs.metric <= 0).all())) == ("minus the entropy", True)


def test_the_divergence_is_that_of_scipy() -> None:
    from scipy.stats import entropy

    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    shares = torch.rand(11, dtype=torch.float64) + 0.1
    shares /= shares.sum()
    found = divergence_from(shares.log())(logits, [None] * 3)
    wanted = [entropy(row.double().softmax(-1), shares) for row in logits]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_cut_texts_are_beginnings_at_words() -> None:
    cuts = cut_texts(TEXTS, per_text=3, seed=1)
    assert len(cuts) == 3 * len(TEXTS)
    for cut in cuts:
        text = TEXTS[int(cut.group.split()[1])]
        assert text.startswith(cut.prompt + " ")
    assert [c.prompt for c in cuts] == [c.prompt for c in cut_texts(TEXTS, per_text=3, seed=1)]
    assert [c.prompt for c in cuts] != [c.prompt for c in cut_texts(TEXTS, per_text=3, seed=2)]


def numbers(**changes: float) -> RegulatorMeasures:
    names = ("norm", "variance", "null", "frequency", "q_task", "p_neutral")
    plain = dict.fromkeys(names, 0.5)
    plain |= {"frequency_share": 0.1, "mediated_low": 0.0, "signed": True, "spared": False}
    return RegulatorMeasures(**(plain | changes))


ENTROPY = {"norm": 0.99, "variance": 0.01, "null": 0.99, "mediated_low": 0.8}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, NEITHER),
        ({"q_task": 0.01, "spared": True}, SKILL),
        ({"q_task": 0.01}, NEITHER),  # no difference found is not equivalence
        ({"q_task": 0.01, "signed": False, "spared": True}, NEITHER),
        ({"q_task": 0.01, "p_neutral": 0.01}, NEITHER),
        (ENTROPY | {"q_task": 0.01, "p_neutral": 0.01}, REGULATOR),
        (ENTROPY | {"q_task": 0.01}, NEITHER),
        (ENTROPY | {"p_neutral": 0.01, "mediated_low": 0.3}, NEITHER),
        (ENTROPY | {"p_neutral": 0.01, "variance": 0.2}, NEITHER),
        (ENTROPY | {"p_neutral": 0.01, "norm": 0.9}, NEITHER),
        (ENTROPY | {"p_neutral": 0.01, "null": 0.9}, NEITHER),
        ({"frequency": 0.99, "frequency_share": 0.7, "p_neutral": 0.01}, REGULATOR),
        ({"frequency": 0.99, "frequency_share": 0.3, "p_neutral": 0.01}, NEITHER),
        ({"frequency": 0.9, "frequency_share": 0.7, "p_neutral": 0.01, "q_task": 0.01}, NEITHER),
    ],
)
def test_the_flag_takes_every_condition(changes: dict[str, float], word: str) -> None:
    assert classify(numbers(**changes))[0] == word


def test_few_texts_do_not_make_a_skill_neuron() -> None:
    """Spared by equivalence: at most one in twenty at the bound, however few the texts; a neuron
    well within it nearly always, once there are texts enough."""
    random = np.random.default_rng(0)
    bound = 1.5

    def rate(size: float, n_texts: int) -> float:
        moved = torch.from_numpy(size * random.gamma(2.0, 0.5, size=(200, n_texts)))
        high = cluster_interval(moved, [str(k) for k in range(n_texts)], level=0.9)[1]
        return float(equivalent(torch.zeros(200).double(), high, bound).double().mean())

    for n_texts in (8, 16, 40):
        assert rate(bound, n_texts) <= 0.1  # at the bound itself 5 %, and three standard errors
        assert rate(1.3 * bound, n_texts) <= 0.05
    assert rate(0.6 * bound, 40) >= 0.9


def test_a_unigram_of_ones_own_and_seeds(tiny: Any) -> None:
    task, adapter = make_task(16), as_adapter(tiny)
    counts = torch.arange(adapter.d_vocab).double()
    names = ["L3N4", "L1N2"]
    found = confidence_regulators(tiny, task, names, neutral=TEXTS[:9], unigram=counts, seed=3)
    again = confidence_regulators(tiny, task, names, neutral=TEXTS[:9], unigram=counts, seed=3)
    assert found.frame().equals(again.frame())
    assert "counts given" in found.unigram_from
    shares = (counts + 1) / (counts + 1).sum()
    weight = unembedding(tiny).double() * 1
    gain = 1.0
    if hasattr(tiny.ln_final, "w"):
        gain = tiny.ln_final.w.detach().double()[:, None]
    else:
        gain = tiny.original_model.model.norm.weight.detach().double()[:, None]
    logits = tiny.blocks[3].mlp.W_out[4].detach().double() @ (gain * weight)
    wanted = np.corrcoef(logits.numpy(), shares.log().numpy())[0, 1]
    assert found["L3N4"]["frequency"] == pytest.approx(wanted, abs=1e-4)
    assert "fewer than 30 groups" in repr(found)
    assert found.of(found["L3N4"]["word"])
    with pytest.raises(LensSkillsError, match="no 'L9N9' here"):
        found["L9N9"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": []}, "no neurons to diagnose"),
        ({"neurons": ["L1H2"]}, "is no neuron"),
        ({"neurons": ["L7N2"]}, "no unit 'L7N2'"),
        ({"metric": "label:boys"}, "known before the model runs"),
        ({"metric": ["confidence", "entropy"]}, "takes one metric"),
        ({"metric": "correct"}, "read off several positions"),
        ({"metric": "first_token_correct"}, "takes 1 values here|takes 2 values here"),
        ({"examples": make_task(4)}, "in 2 groups"),
        ({"neutral": "one text"}, "several texts"),
        ({"unigram": torch.ones(3)}, "one count"),
        ({"n_controls": 5}, "takes 19 or more"),
        ({"n_controls": 90}, "hold only"),
    ],
)
def test_bad_input_says_what_to_do(tiny: Any, changes: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"neurons": ["L3N4"], "examples": make_task(16), "neutral": TEXTS[:4]}
    asked |= changes
    with pytest.raises(LensSkillsError, match=message):
        confidence_regulators(tiny, asked.pop("examples"), asked.pop("neurons"), **asked)


def test_a_neuron_that_is_never_active_is_named(tiny: Any) -> None:
    model = copy.deepcopy(tiny)
    plant(model, 1, 6, direction=torch.zeros(32))
    with pytest.raises(LensSkillsError, match="L1N6 is never active on all 16 examples"):
        confidence_regulators(model, make_task(16), ["L3N4", "L1N6"], neutral=TEXTS[:4])


def test_a_decoy_that_writes_nothing_is_neither(tiny: Any) -> None:
    model = copy.deepcopy(tiny)
    plant(model, 3, 6, direction=torch.ones(32), writes=0.0)
    found = confidence_regulators(model, make_task(16), ["L3N6"], neutral=TEXTS[:4], n_effects=16)
    row = found["L3N6"]
    assert (row["word"], row["effect"], row["norm"], row["frequency"]) == (NEITHER, 0, 0, 0)
    assert np.isnan(row["mediated"])


def test_a_users_hook_is_refused_and_left(tiny: Any) -> None:
    model = copy.deepcopy(tiny)
    model.hook_dict["blocks.1.hook_resid_post"].add_hook(lambda activation, hook: activation)
    with pytest.raises(LensSkillsError, match="Remove hooks"):
        confidence_regulators(model, make_task(16), ["L3N4"], neutral=TEXTS[:4])
    assert len(model.hook_dict["blocks.1.hook_resid_post"].fwd_hooks) == 1
