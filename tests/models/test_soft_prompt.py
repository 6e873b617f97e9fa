"""A soft prompt made of real tokens' embeddings is those tokens, in every verb."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.activations import evaluate, span, stream
from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import ablate, sweep
from lens_skills.models import SoftPrompt, as_adapter, with_soft_prompt
from lens_skills.models.partial_forward import prefill
from lens_skills.scoring import score
from tests.models.test_suffix import build

AFTER, BEFORE = " yes or no", "Premise:"
EXAMPLES = [
    Example(id=f"e{place}", prompt=prompt, answer=" is", foil=" are", group=f"g{place}",
            labels={"odd": place % 2, "size": len(prompt)})
    for place, prompt in enumerate(
        ("The keys", "The key to the cabinets is on the", "The boy, the boys, the girl and keys",
         "The author near the doctors was here. The keys")
    )
]  # fmt: skip


def embedding(model: Any) -> Tensor:
    """The model's own table, without lens_skills."""
    if hasattr(model, "original_model"):
        return model.original_model.get_input_embeddings().weight.detach()
    return model.W_E.detach()


def of_tokens(model: Any, after: str = AFTER, before: str = "") -> SoftPrompt:
    """A soft prompt whose vectors are tokens' embeddings."""
    adapter = as_adapter(model)
    table = embedding(model)
    rows = [adapter.encode_plain(text) if text else [] for text in (after, before)]
    suffix, prefix = (table[torch.tensor(ids, dtype=torch.long)].clone() for ids in rows)
    return SoftPrompt(suffix, prefix, adapter.name, adapter.fingerprint(), False, "text", 0)


def by_hand(model: Any, prompt: str, after: str, before: str) -> Tensor:
    """Log-probabilities after one row of plain tokens, without lens_skills."""
    adapter = as_adapter(model)
    ids = model.to_tokens(prompt)[0].tolist()
    start = ids[:1] if ids[0] == adapter.bos_id else []
    middle = [*(adapter.encode_plain(before) if before else []), *ids[len(start) :]]
    row = torch.tensor([[*start, *middle, *(adapter.encode_plain(after) if after else [])]])
    with torch.no_grad():
        return model(row)[0, -1].double().log_softmax(-1)


def logits_of(model: Any, prompt: SoftPrompt, examples: list[Example]) -> Tensor:
    """Log-probabilities after each input and soft prompt, all in one batch."""
    found: list[Tensor] = []

    def keep(logits: Tensor, examples: Any) -> Tensor:
        found.append(logits)
        return logits[:, 0]

    evaluate(model, examples, {"keep": keep}, prompt=prompt)
    (logits,) = found
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize(("after", "before"), [(AFTER, ""), ("", BEFORE), (AFTER, BEFORE)])
def test_embeddings_of_tokens_are_the_tokens(tiny: Any, after: str, before: str) -> None:
    prompt = of_tokens(tiny, after, before)
    # Batches are sorted by length.
    ordered = sorted(EXAMPLES, key=lambda e: len(as_adapter(tiny).encode(e.prompt)))
    wanted = torch.stack([by_hand(tiny, e.prompt, after, before) for e in ordered])
    found = logits_of(tiny, prompt, ordered)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    alone = torch.cat([logits_of(tiny, prompt, [example]) for example in ordered])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)
    bare = torch.stack([by_hand(tiny, e.prompt, "", "") for e in ordered])
    assert float((found - bare).abs().max()) > 0.1, "the soft prompt is not read at all"


@pytest.mark.parametrize("implementation", ["hooked", "bridge"])
def test_learned_positions_are_added(
    implementation: str, tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    if implementation == "hooked":
        request.getfixturevalue("tiny_hooked")  # skips where there is none
    model = build("gpt2", implementation, tiny_folder)
    prompt = of_tokens(model, AFTER, BEFORE)
    ordered = sorted(EXAMPLES, key=lambda e: len(as_adapter(model).encode(e.prompt)))
    wanted = torch.stack([by_hand(model, e.prompt, AFTER, BEFORE) for e in ordered])
    torch.testing.assert_close(logits_of(model, prompt, ordered), wanted, atol=1e-4, rtol=0)


def test_activations_at_the_vectors_are_those_of_the_tokens(tiny: Any) -> None:
    prompt, adapter = of_tokens(tiny), as_adapter(tiny)
    n_after = len(prompt.suffix)
    for batch in stream(tiny, EXAMPLES, prompt=prompt, layers=[2]):
        for row, example in enumerate(batch.examples):
            ids = [*tiny.to_tokens(example.prompt)[0].tolist(), *adapter.encode_plain(AFTER)]
            with torch.no_grad():
                _, cache = tiny.run_with_cache(torch.tensor([ids]))
            wanted = cache["blocks.2.mlp.hook_post"][0, -n_after:]
            torch.testing.assert_close(batch.activations[row, :, 0], wanted, atol=1e-4, rtol=1e-4)


def test_a_span_is_found_beside_the_soft_tokens(tiny: Any) -> None:
    prompt = of_tokens(tiny, AFTER, BEFORE)
    for given, before in ((None, ""), (prompt, BEFORE)):
        (batch,) = stream(tiny, EXAMPLES[:1], position=span("keys"), prompt=given, layers=[1])
        bos, *ids = tiny.to_tokens(EXAMPLES[0].prompt)[0].tolist()
        adapter = as_adapter(tiny)
        front = [bos, *(adapter.encode_plain(before) if before else []), *ids]
        with torch.no_grad():
            _, cache = tiny.run_with_cache(torch.tensor([front]))
        wanted = cache["blocks.1.mlp.hook_post"][0, -1]
        torch.testing.assert_close(batch.activations[0, 0], wanted, atol=1e-4, rtol=1e-4)


def test_a_prompted_model_is_another_one(tiny: Any) -> None:
    prompt, adapter = of_tokens(tiny), as_adapter(tiny)
    spoken = with_soft_prompt(tiny, prompt)
    assert spoken.fingerprint() != adapter.fingerprint()
    assert spoken.name == f"{adapter.name} with a soft prompt of 3 vectors (seed 0)"
    other = with_soft_prompt(tiny, of_tokens(tiny, " no or yes"))
    assert other.fingerprint() not in (spoken.fingerprint(), adapter.fingerprint())
    assert adapter.soft is None, "the bare adapter stays bare"
    # The same vectors on the other side are another prompt.
    assert of_tokens(tiny, "", AFTER).digest != prompt.digest


def test_what_does_not_fit_is_refused(tiny: Any) -> None:
    prompt, adapter = of_tokens(tiny), as_adapter(tiny)
    wide = SoftPrompt(
        torch.zeros(2, 7), torch.zeros(0, 7), "big", adapter.fingerprint(), False, "normal", 0
    )
    with pytest.raises(LensSkillsError, match="width 7"):
        with_soft_prompt(tiny, wide)
    stranger = SoftPrompt(prompt.suffix, prompt.prefix, "other", "f" * 64, False, "normal", 0)
    with pytest.raises(LensSkillsError, match="other weights"):
        with_soft_prompt(tiny, stranger)
    spoken = with_soft_prompt(tiny, prompt)
    assert with_soft_prompt(spoken, prompt) is spoken
    with pytest.raises(LensSkillsError, match="one at a time"):
        with_soft_prompt(spoken, of_tokens(tiny, " no"))


def test_saved_and_loaded(tiny: Any, tmp_path: Path) -> None:
    rows = tuple(
        {"step": k, "epoch": k, "train_loss": 2.0, "held_out_loss": 1.5, "held_out_accuracy": 0.5}
        for k in (0.0, 1.0)
    )
    made = of_tokens(tiny, AFTER, BEFORE)
    prompt = SoftPrompt(
        made.suffix, made.prefix, made.model, made.model_fingerprint, True, "text", 3, rows,
        {"example_ids": ["e0"], "groups": ["g0"]},
    )  # fmt: skip
    again = SoftPrompt.load(prompt.save(tmp_path / "prompt"))
    assert torch.equal(again.suffix, prompt.suffix)
    assert torch.equal(again.prefix, prompt.prefix)
    assert again.digest == prompt.digest
    assert again.curve == prompt.curve
    assert again.provenance == prompt.provenance
    assert repr(again) == repr(prompt)
    assert again.frame()["held_out_loss"].tolist() == [1.5, 1.5]
    with_soft_prompt(tiny, again)
    with pytest.raises(LensSkillsError):
        SoftPrompt.load(tmp_path / "nothing")


def test_the_split_it_was_trained_on_is_refused(tiny: Any) -> None:
    made = of_tokens(tiny)
    options: dict[str, Any] = {"metrics": "label:size", "layers": [1], "n_permutations": 0}

    def trained_on(**provenance: Any) -> SoftPrompt:
        return SoftPrompt(
            made.suffix, made.prefix, made.model, made.model_fingerprint, True, "text", 0, (),
            provenance,
        )  # fmt: skip

    other = trained_on(example_ids=["x"], groups=["y"])
    assert not score(tiny, EXAMPLES, prompt=other, **options).exploratory
    for prompt, what in (
        (trained_on(example_ids=["e1", "e2"]), "2 examples of this split"),
        (trained_on(example_ids=["x"], groups=["g1"]), "1 groups of this split"),
    ):
        with pytest.raises(LensSkillsError, match=what):
            score(tiny, EXAMPLES, prompt=prompt, **options)
        found = score(tiny, EXAMPLES, prompt=prompt, exploratory=True, **options)
        assert found.exploratory


def test_positions_of_a_prompt(tiny: Any) -> None:
    suffix = of_tokens(tiny)
    found = score(tiny, EXAMPLES, metrics="label:size", prompt=suffix, layers=[1], n_permutations=0)
    assert found.positions == tuple(str(-k) for k in range(len(suffix.suffix), 0, -1))
    with pytest.raises(LensSkillsError, match="same for every example"):
        next(stream(tiny, EXAMPLES, prompt=of_tokens(tiny, "", BEFORE)))
    with pytest.raises(LensSkillsError, match="none was given"):
        next(stream(tiny, EXAMPLES, position="prompt"))


def test_beyond_the_context(tiny: Any) -> None:
    adapter, made = as_adapter(tiny), of_tokens(tiny)
    long = SoftPrompt(
        made.suffix[:1].expand(adapter.n_ctx, -1).clone(), made.prefix, made.model,
        made.model_fingerprint, False, "text", 0,
    )  # fmt: skip
    with pytest.raises(LensSkillsError, match=f"{adapter.n_ctx} of them the soft prompt's"):
        evaluate(tiny, EXAMPLES, "confidence", prompt=long)


def test_a_sweep_resumes_and_is_what_hooks_give(tiny: Any) -> None:
    prompt, adapter = of_tokens(tiny), as_adapter(tiny)
    units = [(0, 3), (2, 5), (3, 7)]
    found = sweep(
        tiny, EXAMPLES, units, do=ablate("zero"), metric="logit_diff", prompt=prompt,
        position="last",
    )  # fmt: skip
    assert found.provenance["whole_passes"] is None
    encoded = encode_examples(adapter, EXAMPLES, answers=True)
    for column, item in enumerate(encoded):
        row = [*tiny.to_tokens(item.prompt)[0].tolist(), *adapter.encode_plain(AFTER)]
        pair = torch.tensor([(item.answer_tokens or ())[0], (item.foil_tokens or ())[0]])

        def difference(hooks: Any, row: Any = row, pair: Any = pair) -> float:
            with torch.no_grad():
                out = tiny.run_with_hooks(torch.tensor([row]), fwd_hooks=hooks)[0, -1, pair]
            return float(out[0] - out[1])

        clean = difference([])
        assert float(found.clean[column]) == pytest.approx(clean, abs=1e-4)
        for place, (layer, neuron) in enumerate(units):

            def zero(activation: Tensor, hook: Any, neuron: int = neuron) -> Tensor:
                activation = activation.clone()
                activation[:, -1, neuron] = 0
                return activation

            edited = difference([(f"blocks.{layer}.mlp.hook_post", zero)])
            assert float(found.total[place, column]) == pytest.approx(edited - clean, abs=1e-4)


def test_suffix_sizes_are_counted(tiny: Any) -> None:
    """The keys and values of a batch, which a memory budget is about."""
    adapter = as_adapter(tiny)
    tokens = torch.arange(5, 25).view(2, 10)
    sizes = [
        prefill(adapter, tokens, tokens > 0, start=start, readers={}, check=False)
        for start in (4, 8)
    ]
    for suffix, start in zip(sizes, (4, 8), strict=True):
        del suffix.entering[1:]
        entering = 2 * (10 - start) * adapter.d_model * 4
        # Two examples, keys and values, of the heads that share them (2 of 4) or of all.
        one_head = 2 * 2 * start * adapter.n_layers * adapter.d_head * 4
        assert (suffix.n_bytes - entering) / one_head in (2, 4)
