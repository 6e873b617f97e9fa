"""A set says who it is of, holds what was found, and tells its own model from every other."""

import copy
import json
import re
import runpy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import lens_skills as ls
from lens_skills.activations.metrics import _NAMED
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import Audit, Verdict, controls
from lens_skills.models import as_adapter
from lens_skills.publishing import NeuronSet, set_contents, set_format
from lens_skills.publishing.probe import RESIDUAL
from lens_skills.studies import Study
from lens_skills.tasks import Task
from tests.interventions.test_verify import part
from tests.models.conftest import needs_hooked

FEW = {"controls": controls(0, neurons=20), "unrelated": False, "n_permutations": 19}
ALL = {"licence": "CC-BY-4.0", "citation": "Someone 2026"}


@pytest.fixture(scope="module")
def made(found: Study, tiny_hooked: Any, task: Task) -> NeuronSet:
    return NeuronSet.of(found, tiny_hooked, task, name="verbs", **ALL)


@pytest.fixture(scope="module")
def trial(made: NeuronSet, tiny_hooked: Any, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """From the file alone."""
    place = made.save(tmp_path_factory.mktemp("published") / "verbs")
    return NeuronSet.load(place).audit(tiny_hooked, **FEW)


@pytest.fixture
def asked(trial: Audit, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `audit` was asked, which then gives another trial's result."""
    calls: list[dict[str, Any]] = []

    def recorded(model: Any, task: Task, **options: Any) -> Audit:
        calls.append({"task": task, **options})
        return replace(trial, notes=())

    monkeypatch.setattr("lens_skills.publishing.neuron_set.audit", recorded)
    return calls


@pytest.fixture
def saved(made: NeuronSet, tmp_path: Path) -> Path:
    return made.save(tmp_path / "verbs")


def test_it_is_read_back_as_it_was(made: NeuronSet, saved: Path) -> None:
    again = NeuronSet.load(saved)
    assert again.document == made.document
    assert again.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(again.tensors[name], made.tensors[name]) for name in made.tensors)
    assert repr(again) == repr(made)
    assert repr(ls.load(saved)) == repr(made)
    made.save(saved)  # in place of itself
    assert {path.name for path in saved.iterdir()} == {"neurons.json", "neurons.safetensors"}


def test_the_file_keeps_to_its_schema_and_the_schema_to_its_own(saved: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(NeuronSet.schema())
    jsonschema.validate(json.loads((saved / "neurons.json").read_text()), NeuronSet.schema())


def test_it_holds_what_the_study_found(made: NeuronSet, found: Study, task: Task) -> None:
    assert made.names == found.selection.names
    evidence = found.evidence().set_index("name")
    assert found.verdict is not None
    for row in made.document["components"]:
        (claim,), own = row["associations"], evidence.loc[row["name"]]
        assert claim["r"] == pytest.approx(own["r_confirm"], abs=0)
        assert (claim["low"], claim["high"]) == (own["low"], own["high"])
        assert (claim["q"], claim["p_family"]) == (own["q_confirm"], own["p_family"])
        assert "confirm split" in claim["split"]
        tried = [one for one in found.verdict.singles if one.name == row["name"]]
        assert (row["verdict"] is None) == (not tried)
        for one in tried:
            assert row["verdict"]["effect"] == one.effect
            assert (row["verdict"]["low"], row["verdict"]["high"]) == (one.low, one.high)
            assert row["verdict"]["word"] == one.word
    assert sum(row["verdict"] is not None for row in made.document["components"]) == 3
    assert made.document["set_verdict"]["effect"] == found.verdict["set"].effect
    assert made.task is not None
    assert list(made.task) == list(task)
    used = {row["id"]: row["used"] for row in made.document["task"]["examples"]}
    assert {key for key, use in used.items() if use == "search"} == {
        example.id for part in (found.explore, found.confirm) for example in part
    }
    assert {key for key, use in used.items() if use == "verdict"} == set(
        found.verdict.effects.example_ids
    )


def test_the_definitions_are_of_every_metric_there_is() -> None:
    assert set(set_contents.BUILT_IN) == set(_NAMED)


# What it is made of.


def test_of_a_verdict_a_selection_an_audit_and_names(
    found: Study, trial: Audit, tiny_hooked: Any, task: Task
) -> None:
    assert found.verdict is not None
    alone = NeuronSet.of(found.verdict, tiny_hooked, task, **ALL)
    assert alone.names == [one.name for one in found.verdict.singles]
    assert all(not row["associations"] for row in alone.document["components"])
    both = NeuronSet.of(found.selection, tiny_hooked, task, verdict=found.verdict, **ALL)
    whole = NeuronSet.of(found, tiny_hooked, task, **ALL)
    assert both.document["components"] == [
        {**row, "associations": [{**one, "grade": two["grade"], "stopped_by": two["stopped_by"]}
                                 for one, two in zip(row["associations"],
                                                     mine["associations"], strict=True)]}
        for row, mine in zip(whole.document["components"], both.document["components"], strict=True)
    ]  # fmt: skip
    audited = NeuronSet.of(trial, tiny_hooked, task, **ALL)
    assert audited.names == [one.name for one in trial.verdict.singles]
    claims = audited.document["components"][1]["associations"]
    assert [one["r"] for one in claims] == [
        row["r"] for row in trial.claims if row["name"] == audited.names[1]
    ]
    named = NeuronSet.of(["L1N3", "L2MLP"], tiny_hooked, task, **ALL)
    assert len(named.tensors["own"]) == 1 + tiny_hooked.cfg.d_model


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"licence": " "}, "a set needs a licence"),
        ({"name": "../verbs"}, "holds a separator of paths"),
        ({"name": "a\\b"}, "holds a separator of paths"),
        ({"name": ".."}, "holds a separator of paths"),
        ({"source": 3}, "a NeuronSet is not made of a int"),
        ({"source": ["L99N1"]}, "L99"),
        ({"source": ["../L1N1"]}, "no unit"),
        ({"source": pd.DataFrame()}, "a NeuronSet is not made of a DataFrame"),
    ],
)
def test_what_makes_no_set_is_refused(
    options: dict[str, Any], said: str, tiny_hooked: Any, task: Task
) -> None:
    asked = {"source": ["L1N3"], "model": tiny_hooked, "task": task, **ALL, **options}
    with pytest.raises(LensSkillsError, match=re.escape(said)):
        NeuronSet.of(asked.pop("source"), asked.pop("model"), asked.pop("task"), **asked)


def test_a_result_of_another_model_or_task_is_refused(
    found: Study, tiny_hooked: Any, task: Task
) -> None:
    other = copy.deepcopy(tiny_hooked)
    with torch.no_grad():
        other.blocks[0].mlp.W_in[0, 0] += 0.1
    with pytest.raises(LensSkillsError, match="the result is of other weights"):
        NeuronSet.of(found, other, task, **ALL)
    with pytest.raises(LensSkillsError, match=r"lacks .* of the examples the result was made with"):
        NeuronSet.of(found, tiny_hooked, task[:60], **ALL)


# Whether it fits a model.


def test_its_own_model_passes_bit_for_bit(made: NeuronSet, tiny_hooked: Any) -> None:
    checked = made.check(tiny_hooked)
    assert checked.exact
    assert checked.activations == checked.log_probabilities == 0
    assert checked.warnings == ()
    assert checked.frame()["what"].tolist() == ["activations", "log_probabilities"]
    assert "the same weights, bit for bit" in repr(checked)


def test_the_other_implementation_passes(made: NeuronSet, tiny_bridge: Any) -> None:
    checked = made.check(tiny_bridge)
    assert 0 < checked.activations < 1e-5
    assert checked.implementation == ("hooked", "bridge")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_warns(made: NeuronSet, tiny_hooked: Any, dtype: torch.dtype) -> None:
    other = copy.deepcopy(tiny_hooked).to(dtype)
    with pytest.warns(RuntimeWarning, match="published from float32, read in"):
        checked = made.check(other)
    assert checked.dtype == ("float32", str(dtype).removeprefix("torch."))
    assert not checked.exact


def test_folded_weights_warn_and_pass(made: NeuronSet, tiny_bridge: Any) -> None:
    folded = copy.deepcopy(tiny_bridge)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folded.enable_compatibility_mode(disable_warnings=True)
        folded.cfg.default_prepend_bos = True
        checked = made.check(folded)
    assert checked.activations < 1e-4
    assert not checked.exact
    assert any("not the same numbers, bit for bit" in text for text in checked.warnings)


@needs_hooked
def test_a_centred_model_passes_and_its_residual_components_are_named(
    task: Task, tiny_hf: tuple[Any, Any]
) -> None:
    """With LayerNorm, centring changes what a residual dimension holds, and no neuron's."""
    plain, centred = (layer_norm_model(tiny_hf[1], centre) for centre in (False, True))
    made = NeuronSet.of(["L1N3", "L1R5"], plain, task, **ALL)
    with pytest.warns(RuntimeWarning, match="L1R5 hold other numbers at their site"):
        checked = made.check(centred)
    assert checked.moved == ("L1R5",)
    assert checked.activations < 1e-4


def layer_norm_model(tokenizer: Any, centre: bool) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, n_heads=4, d_mlp=48, act_fn="gelu",
        d_vocab=len(tokenizer), normalization_type="LN", model_name="gpt-tiny", seed=0,
        device="cpu", default_prepend_bos=True,
    )  # fmt: skip
    model = HookedTransformer(config, copy.deepcopy(tokenizer), move_to_device=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    state = {name: part.clone() for name, part in model.state_dict().items()}
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=centre, center_unembed=centre,
        fold_value_biases=False,
    )  # fmt: skip
    return model.eval()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "one row of a neuron's input": lambda m: m.blocks[2].mlp.W_in[:, 9].mul_(1.05),
    "one row of a neuron's output": lambda m: m.blocks[2].mlp.W_out[9].mul_(1.05),
    "a query matrix, all by a thousandth": lambda m: m.blocks[1].attn.W_Q.mul_(1.01),
    "two neurons in each other's place": lambda m: _swap(m.blocks[3].mlp, 5, 6),
    "the unembedding of some words": lambda m: m.unembed.W_U[:, ::2].mul_(1.03),
}


def _swap(mlp: Any, one: int, two: int) -> None:
    for weight, dim in ((mlp.W_in, 1), (mlp.W_gate, 1), (mlp.W_out, 0)):
        order = list(range(weight.shape[dim]))
        order[one], order[two] = two, one
        weight.copy_(weight.index_select(dim, torch.tensor(order)).clone())


@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_weights_are_refused(made: NeuronSet, tiny_hooked: Any, change: str) -> None:
    other = copy.deepcopy(tiny_hooked)
    with torch.no_grad():
        CHANGES[change](other)
    with pytest.raises(LensSkillsError, match="other weights: ") as refused:
        made.check(other)
    first = {"one row of a neuron's input": 2, "two neurons in each other's place": 3}.get(change)
    if first is not None:
        assert f"the first layer that differs is {first}, by" in str(refused.value)


def test_a_neuron_of_the_set_that_was_changed_is_told(task: Task, tiny_hooked: Any) -> None:
    made = NeuronSet.of(["L3N9", "L1N2"], tiny_hooked, task, **ALL)
    other = copy.deepcopy(tiny_hooked)
    with torch.no_grad():
        other.blocks[3].mlp.W_in[:, 9] *= 1.5
    with pytest.raises(LensSkillsError, match="1 of the 2 components of the set differ"):
        made.check(other)


def test_a_model_of_other_sizes_or_words_is_refused(made: NeuronSet, tiny_hooked: Any) -> None:
    with pytest.raises(LensSkillsError, match=r"is not the model 'verbs'.*n_layers|d_model"):
        made.check(ls.load_model("arithmetic-small"))
    other = copy.deepcopy(tiny_hooked)
    other.tokenizer = copy.deepcopy(other.tokenizer)
    other.tokenizer.backend_tokenizer.normalizer = None
    mixed = copy.deepcopy(made.document)
    words = torch.as_tensor(made.tensors["tokens"]).clone()
    words[3] = (words[3] + 1) % 7 + 3
    with pytest.raises(LensSkillsError, match="its tokenizer reads"):
        NeuronSet(mixed, {**made.tensors, "tokens": words}).check(tiny_hooked)


def test_the_probe_is_what_the_library_itself_reads(made: NeuronSet, tiny_hooked: Any) -> None:
    """By TransformerLens's own cache, with projections summed by hand."""
    tokens, lengths = made.tensors["tokens"], made.tensors["lengths"].tolist()
    signs = np.random.RandomState(0).randint(0, 2, size=(tiny_hooked.cfg.d_model, 8)) * 2.0 - 1
    start = 0
    for length in lengths:
        row = tokens[start : start + length]
        logits, cache = tiny_hooked.run_with_cache(row[None])
        resid = cache["resid_post", 2][0].detach().double()
        by_hand = (resid - resid.mean(-1, keepdim=True)).numpy() @ signs / signs.shape[0] ** 0.5
        there = made.tensors[f"sketches/{RESIDUAL}"][2, start : start + length]
        np.testing.assert_allclose(there.numpy(), by_hand, rtol=1e-4, atol=1e-5)
        shares = logits[0].detach().log_softmax(-1)
        best = made.tensors["top"][start : start + length]
        torch.testing.assert_close(
            made.tensors["log_probabilities"][start : start + length],
            shares.gather(1, best),
            rtol=1e-4,
            atol=1e-4,
        )
        unit = made.units[0]
        own = cache[unit.hook_name][0, :, unit.start]
        torch.testing.assert_close(
            made.tensors["own"][0, start : start + length], own, rtol=1e-4, atol=1e-5
        )
        start += length


def test_a_prompted_model_is_refused(made: NeuronSet, tiny_hooked: Any, task: Task) -> None:
    from lens_skills.models import with_soft_prompt

    prompt = ls.fit_prompt(tiny_hooked, task[:24], n_tokens=1, epochs=1)
    with pytest.raises(LensSkillsError, match="read with a soft prompt"):
        made.check(with_soft_prompt(tiny_hooked, prompt))
    with pytest.raises(LensSkillsError, match="read with a soft prompt"):
        NeuronSet.of(["L1N3"], with_soft_prompt(tiny_hooked, prompt), task, **ALL)


# On trial.


def test_it_is_audited_from_the_file_alone(made: NeuronSet, trial: Audit, found: Study) -> None:
    tried = [one.name for one in trial.verdict.singles]
    assert len(tried) == 20
    assert set(tried) < set(made.names)
    assert trial.verdict.effects.metric == "logit_diff"
    assert trial.verdict.delta == 0.5  # declared then, and taken over
    assert {row["metric"] for row in trial.claims} == {"label:plural"}
    searched = {example.id for part in (found.explore, found.confirm) for example in part}
    assert not searched & set(trial.verdict.effects.example_ids)
    assert "took no part in the search" in trial.notes[0]


def test_it_asks_audit_what_anyone_would_by_hand(
    made: NeuronSet, tiny_hooked: Any, found: Study, task: Task, asked: list[dict[str, Any]]
) -> None:
    made.audit(tiny_hooked, delta=0.25, seed=3, most=999)
    (call,) = asked
    searched = {example.id for part in (found.explore, found.confirm) for example in part}
    assert list(call.pop("task")) == [one for one in task if one.id not in searched]
    assert [unit.name for unit in call.pop("neurons")] == made.names
    assert call == {
        "metric": "logit_diff", "claims": ["label:plural"], "delta": 0.25, "position": "last",
        "chat": False, "seed": 3,
    }  # fmt: skip


def test_those_with_a_verdict_come_first_where_not_all_are_tried(
    made: NeuronSet, tiny_hooked: Any, found: Study, asked: list[dict[str, Any]]
) -> None:
    assert found.verdict is not None
    trial = made.audit(tiny_hooked, most=2)
    tried = {unit.name for unit in asked[0]["neurons"]}
    assert len(tried) == 2
    assert tried <= {one.name for one in found.verdict.singles}
    assert trial.notes[-1].startswith(f"2 of {len(made)} components")
    with pytest.raises(LensSkillsError, match="most= is how many to try"):
        made.audit(tiny_hooked, most=0)


def test_the_examples_it_was_found_on_are_no_new_test(
    made: NeuronSet, tiny_hooked: Any, found: Study, asked: list[dict[str, Any]]
) -> None:
    trial = made.audit(tiny_hooked, found.explore)
    assert "the components were found with 64 of them" in trial.notes[0]
    assert made.audit(tiny_hooked, part(9, 60), most=999).notes == ()


def test_other_weights_are_not_audited(made: NeuronSet, tiny_hooked: Any) -> None:
    other = copy.deepcopy(tiny_hooked)
    with torch.no_grad():
        other.blocks[2].mlp.W_in.mul_(1.1)
    with pytest.raises(LensSkillsError, match=r"audit\(model, task, neurons=set.names\)"):
        made.audit(other, **FEW)


def test_a_task_too_large_for_a_file_has_to_be_given(
    tiny_hooked: Any, task: Task, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_skills.publishing.neuron_set.LARGEST_TASK", 100)
    made = NeuronSet.of(["L1N3"], tiny_hooked, task, **ALL)
    assert made.document["task"]["examples"] is None
    assert made.task is None
    with pytest.raises(LensSkillsError, match="too large for a file"):
        made.audit(tiny_hooked, **FEW)
    assert made.audit(tiny_hooked, task).notes == ()


def test_a_metric_of_the_authors_has_to_be_given(
    tiny_hooked: Any, task: Task, asked: list[dict[str, Any]]
) -> None:
    def mine(logits: torch.Tensor, examples: Any) -> torch.Tensor:
        return logits[:, 5].double()

    verdict = ls.verify(
        tiny_hooked, task[:48], ["L1N3"], do=ls.ablate("zero"), metric=mine, delta=0.5,
        controls=controls(0, neurons=20), unrelated=False,
    )  # fmt: skip
    assert isinstance(verdict, Verdict)
    made = NeuronSet.of(verdict, tiny_hooked, task, **ALL)
    (metric,) = made.document["metrics"]
    assert metric["built_in"] is False
    with pytest.raises(LensSkillsError, match="a function of the authors' that is not in the file"):
        made.audit(tiny_hooked, **FEW)
    made.audit(tiny_hooked, metric=mine)
    assert asked[0]["metric"] is mine
    assert asked[0]["do"] == ls.ablate("zero")  # as it was published


# What is no set, or not one any more.


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A change of the JSON by somebody who makes the digest fit, as any program can."""
    path = folder / "neurons.json"
    document = json.loads(path.read_text())
    change(document)
    tensors = load_file(folder / "neurons.safetensors")
    document.pop("digest", None)
    from lens_skills.results import _digest

    save_file(tensors, folder / "neurons.safetensors")
    document["digest"] = _digest(folder / "neurons.safetensors", document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(version=2), "is of version 2 of the format.*Update it"),
        (lambda d: d.update(version=True), "is of version True"),
        (lambda d: d.update(format="other"), "is no NeuronSet: its format is 'other'"),
        (lambda d: d.update(name="../../etc/x"), "name does not keep to the schema"),
        (lambda d: d.update(name=".."), "name does not keep to the schema"),
        (lambda d: d.update(extra=1), "the whole does not keep to the schema.*extra"),
        (lambda d: d.pop("licence"), "'licence' is a required property"),
        (lambda d: d["components"][0].update(site="../x"), r"components.0.site does not keep"),
        (lambda d: d["components"][0].update(name="L1/N3"), r"components.0.name does not keep"),
        (lambda d: d["components"][0].update(stop=0), r"components.0.stop does not keep"),
        (lambda d: d["components"][0].update(start=9, stop=9), "ends before it begins"),
        (lambda d: d["components"].clear(), "components does not keep"),
        (lambda d: d["probe"]["tolerance"]["float32"].update(activations=9.0), "activations does"),
        (lambda d: d["tensors"].append("more"), "holds other tensors"),
        (lambda d: d["components"].append(dict(d["components"][0])), "damaged"),
    ],
)
def test_what_does_not_keep_to_the_schema_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    rewrite(saved, change)
    with pytest.raises(LensSkillsError, match=said):
        NeuronSet.load(saved)


def test_every_cut_and_every_flipped_byte_is_one_clear_error(saved: Path) -> None:
    for name in ("neurons.json", "neurons.safetensors"):
        whole = (saved / name).read_bytes()
        places = np.random.default_rng(0).integers(0, len(whole), 12).tolist()
        for place in [0, 1, len(whole) - 1, *places]:
            for broken in (whole[:place], whole[:place] + bytes([whole[place] ^ 1])
                           + whole[place + 1 :]):  # fmt: skip
                (saved / name).write_bytes(broken)
                with pytest.raises(LensSkillsError):
                    NeuronSet.load(saved)
        (saved / name).write_bytes(whole)
    NeuronSet.load(saved)


def test_a_set_that_was_copied_in_part_says_so(saved: Path) -> None:
    whole = (saved / "neurons.safetensors").read_bytes()
    (saved / "neurons.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        LensSkillsError, match=r"two files are not as they were .* Get the set agai"
    ):
        NeuronSet.load(saved)
    (saved / "neurons.safetensors").unlink()
    with pytest.raises(LensSkillsError, match=r"neurons\.safetensors is missing: .* in part\. Get"):
        NeuronSet.load(saved)


def test_a_name_of_another_neuron_is_refused(made: NeuronSet) -> None:
    first, *rest = made.document["components"]
    other = {**first, "name": f"L{first['layer']}N{first['start'] + 1}"}
    with pytest.raises(
        LensSkillsError, match=r"the file calls L\d+N\d+ what is neuron \d+ of laye"
    ):
        NeuronSet({**made.document, "components": [other, *rest]}, made.tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"layer": 99, "name": "L0X"},
            r"'verbs' was published with .* is not in it: no layer \[99\]",
        ),
        ({"site": "mlp.hook_none"}, r"is read at 'mlp\.hook_none', which it has not"),
        (
            {"start": 9000, "stop": 9001, "name": "L0X"},
            r"L0X is feature 9,000 of .* there\.",
        ),
    ],
)
def test_a_component_that_the_model_has_not_is_named(
    made: NeuronSet, tiny_hooked: Any, change: dict[str, Any], said: str
) -> None:
    first, *rest = made.document["components"]
    other = NeuronSet({**made.document, "components": [{**first, **change}, *rest]}, made.tensors)
    with pytest.raises(LensSkillsError, match=said):
        other.check(tiny_hooked)


@pytest.mark.parametrize("text", ["", "[]", "{", "nul", '{"a": NaN}', "[" * 100_000, "\ud800"])
def test_a_file_of_nonsense_is_one_clear_error(saved: Path, text: str) -> None:
    (saved / "neurons.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(LensSkillsError, match=r"is damaged|is no NeuronSet"):
        NeuronSet.load(saved)


def test_where_there_is_none_it_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="there is no such folder"):
        NeuronSet.load(tmp_path / "none")
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(LensSkillsError, match=r"it holds mine.txt"):
        NeuronSet.load(tmp_path)


def test_what_else_is_in_the_folder_is_not_lost(made: NeuronSet, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(LensSkillsError, match="holds no saved neurons"):
        made.save(tmp_path)
    saved = made.save(tmp_path / "set")
    (saved / "mine.txt").write_text("x")
    with pytest.raises(LensSkillsError, match=r"holds 'mine.txt' beside"):
        made.save(saved)


def test_tokens_that_the_model_has_not_are_refused(made: NeuronSet, tiny_hooked: Any) -> None:
    far = made.tensors["tokens"].clone()
    far[0] = 10**9
    with pytest.raises(LensSkillsError, match="probed with token 1000000000"):
        NeuronSet(made.document, {**made.tensors, "tokens": far}).check(tiny_hooked)


# In the forms of other programs.


def test_as_a_table_every_number_comes_back(made: NeuronSet, tmp_path: Path) -> None:
    table = pd.read_csv(made.export(tmp_path / "list.csv"))
    assert table["name"].tolist() == made.names
    frame = made.frame()
    np.testing.assert_array_equal(table["r"], frame["r"])
    np.testing.assert_array_equal(table["effect_effect"], frame["effect"].astype(float))


def test_a_text_that_is_a_formula_is_none_in_the_table(
    tiny_hooked: Any, task: Task, tmp_path: Path
) -> None:
    made = NeuronSet.of(["L1N3"], tiny_hooked, task, **ALL)
    document = copy.deepcopy(dict(made.document))
    document["components"][0]["position"] = "=1+1"
    path = NeuronSet(document, made.tensors).export(tmp_path / "list.csv")
    assert pd.read_csv(path)["position"].tolist() == ["'=1+1"]


def test_as_python_it_is_data_alone(made: NeuronSet, tmp_path: Path) -> None:
    document = {**made.document, "citation": '"""\nimport os\n', "name": '"""\u2028import os'}
    path = NeuronSet(document, made.tensors).export(tmp_path / "list.py")
    found = runpy.run_path(str(path))
    assert found["NAMES"] == made.names
    assert found["COMPONENTS"] == made.document["components"]
    assert found["CITATION"] == document["citation"]
    assert "os" not in found


def test_for_pyvene_the_modules_are_those_of_the_neurons(
    made: NeuronSet, tiny_hooked: Any, tiny_hf: tuple[Any, Any], tmp_path: Path
) -> None:
    """What goes into the named modules of the plain model is what TransformerLens calls neurons."""
    heads = NeuronSet.of(["L1N3", "L2H1.2"], tiny_hooked, made.task, **ALL)
    plain = json.loads(heads.export(tmp_path / "list.json", to="pyvene").read_text())
    model, _ = tiny_hf
    tokens = heads.tensors["tokens"][: int(heads.tensors["lengths"][0])]
    _, cache = tiny_hooked.run_with_cache(tokens[None])
    for row, places, unit in zip(
        plain["representations"], plain["subspaces"], heads.units, strict=True
    ):
        read: list[torch.Tensor] = []
        path, _, end = row["component"].rpartition(".")
        assert end == "input"
        module = model.get_submodule(path.replace("[", ".").replace("]", ""))
        hook = module.register_forward_pre_hook(lambda _m, args, read=read: read.append(args[0]))
        with torch.no_grad():
            model(tokens[None])
        hook.remove()
        own = cache[unit.hook_name].flatten(2)[0, :, unit.start : unit.stop]
        torch.testing.assert_close(read[0][0][:, places], own, rtol=1e-4, atol=1e-5)


def test_for_pyvene_an_unknown_architecture_has_to_be_said(made: NeuronSet, tmp_path: Path) -> None:
    document = copy.deepcopy(dict(made.document))
    document["model"]["architecture"] = "OtherForCausalLM"
    other = NeuronSet(document, made.tensors)
    with pytest.raises(LensSkillsError, match="which module of OtherForCausalLM holds"):
        other.export(tmp_path / "a.json", to="pyvene")
    with pytest.raises(LensSkillsError, match="says no layer"):
        other.export(tmp_path / "a.json", to="pyvene", component="h.mlp.input")
    path = other.export(tmp_path / "a.json", to="pyvene", component="h[{layer}].mlp.input")
    layer = made.units[0].layer
    first = json.loads(path.read_text())["representations"][0]
    assert first["component"] == f"h[{layer}].mlp.input"


def test_as_lists_of_lape_and_neuronpedia(made: NeuronSet, tmp_path: Path) -> None:
    lape = json.loads(made.export(tmp_path / "lape.json", to="lape").read_text())
    (layers,) = lape["neurons"]
    assert len(layers) == 4
    assert {(n, i) for n, found in enumerate(layers) for i in found} == {
        (unit.layer, unit.start) for unit in made.units
    }
    options = {"model": "tiny", "layer": "{layer}-mlp"}
    body = json.loads(made.export(tmp_path / "np.json", to="neuronpedia", **options).read_text())
    assert set(body) == {"name", "description", "features"}
    for unit, one in zip(made.units, body["features"], strict=True):
        assert set(one) == {"modelId", "layer", "index", "description"}
        where = (one["modelId"], one["layer"], one["index"])
        assert where == ("tiny", f"{unit.layer}-mlp", unit.start)


def test_heads_are_in_no_list_of_neurons(tiny_hooked: Any, task: Task, tmp_path: Path) -> None:
    made = NeuronSet.of(["L1H2"], tiny_hooked, task, **ALL)
    for to in ("lape", "neuronpedia"):
        with pytest.raises(LensSkillsError, match="hold neurons of MLPs, and L1H2"):
            made.export(tmp_path / "list.json", to=to)


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("list.json", {}, "does not say in what form"),
        ("list.json", {"to": "pyven"}, "no form 'pyven'. Did you mean 'pyvene'"),
        ("list.csv", {"component": "x"}, "csv has no option 'component'"),
        ("list.json", {"to": "pyvene", "component": 3}, "component=3 is no text"),
        (".", {"to": "csv"}, "is a folder"),
    ],
)
def test_a_form_that_is_none_is_refused(
    made: NeuronSet, path: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(LensSkillsError, match=said):
        made.export(tmp_path / path, **options)


def test_nothing_of_a_set_is_run() -> None:
    folder = Path(set_format.__file__).parent
    for path in folder.glob("*.py"):
        assert not re.search(r"\b(pickle|eval|exec|torch\.load|__import__)\b", path.read_text())


def test_the_probe_leaves_the_model_as_it_is(tiny: Any, task: Task) -> None:
    before = as_adapter(tiny).fingerprint()
    NeuronSet.of(["L1N3"], tiny, task, **ALL)
    assert as_adapter(tiny).fingerprint() == before
