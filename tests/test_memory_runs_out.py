"""Memory that runs out halves the batch of every verb that runs batches, and changes no number."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations.forward import encode_examples
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter, with_soft_prompt
from lens_skills.models.text_writer import writer_for
from lens_skills.soft_prompts import initial_prompt
from lens_skills.soft_prompts.training_batches import TrainingPasses, training_batches
from tests.conftest import hooks_on

SUMS = ls.tasks.arithmetic("+", digits=(1,))
TAKEN = ls.tasks.arithmetic("-", digits=(1,))
SOME = SUMS[:48]
TEXT = [replace(one, prompt=one.prompt + " and" * (k % 3)) for k, one in enumerate(SOME[:20])]
UNITS = ["L0N3", "L1N5", "L1N9"]
HELD = [one for one in SUMS if one.group not in {each.group for each in SOME}][:12]
ERROR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")
PLAIN: dict[str, Any] = {"epochs": 2, "batch_size": 16}


def written(found: Any) -> dict[str, Any]:
    numbers = torch.stack([found.mean_log_probability, found.first_probability, found.mean_entropy])
    return {"texts": found.texts, "numbers": numbers}


def trained(found: Any) -> dict[str, Any]:
    curve = torch.tensor([[row[name] for name in row] for row in found.curve[1:]])
    parts = found.weights if hasattr(found, "weights") else {"suffix": found.suffix}
    if len(getattr(found, "prefix", ())):
        parts = {**parts, "prefix": found.prefix}
    return {"curve": curve, **parts}


def tabled(found: Any) -> dict[str, Any]:
    table = found.frame()
    numbers = table.select_dtypes("number")
    words = tuple(map(tuple, table.drop(columns=list(numbers)).to_numpy().tolist()))
    return {"numbers": torch.tensor(numbers.to_numpy(float)), "words": words}


def dissected(found: Any) -> dict[str, Any]:
    return {**tabled(found), "curve": torch.tensor(found.curve.to_numpy(float))}


VERBS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], dict[str, Any]]]] = {
    "generate": (lambda m: ls.generate(m, TEXT, max_new_tokens=5), written),
    "generate, drawn": (
        lambda m: ls.generate(m, TEXT, max_new_tokens=5, temperature=1.0, seed=3),
        written,
    ),
    "fit_prompt": (lambda m: ls.fit_prompt(m, SOME, n_tokens=2, **PLAIN), trained),
    "fit_prompt, whole passes": (
        lambda m: ls.fit_prompt(m, SOME, n_tokens=1, n_prefix=1, **PLAIN),
        trained,
    ),
    "finetune, neurons": (lambda m: ls.finetune(m, SOME, UNITS, **PLAIN), trained),
    "finetune, all": (lambda m: ls.finetune(m, SOME, None, **PLAIN), trained),
    "continual": (
        lambda m: ls.continual(
            m, {"plus": SUMS[:60], "minus": TAKEN[:60]}, masks=("ncft",), seeds=1, epochs=1,
            transfer=False,
        ),
        lambda found: {"accuracy": found.accuracy, "jaccard": found.jaccard},
    ),
    "rationales": (
        lambda m: ls.rationales(m, SUMS[:30], UNITS, do=ls.ablate("zero"), longest=1),
        tabled,
    ),
    "dissect": (
        lambda m: ls.dissect(
            m, SUMS[:60], shares=(0.04,), n_neurons=2, n_random=1, layers=[2], n_permutations=39
        ),
        dissected,
    ),
}  # fmt: skip


@contextmanager
def memory_for(
    model: Any, rows: int, monkeypatch: pytest.MonkeyPatch, error: BaseException = ERROR
) -> Iterator[list[int]]:
    """A model of whose first norm no more rows can be taken at once; the sizes that were tried.

    By the class of the norm, whose hooks stay none: any pass, whole or in part, runs it.
    """
    norm = as_adapter(model).model.blocks[0].ln1
    own, tried = type(norm).forward, list[int]()

    def forward(self: Any, x: Tensor, *rest: Any, **more: Any) -> Any:
        if len(x) > rows:
            raise error
        tried.append(len(x))
        return own(self, x, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(type(norm), "forward", forward)
        yield tried


@pytest.fixture(scope="module")
def little() -> Any:
    return ls.load_model("arithmetic-small")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_goes_on_in_halves_with_the_same_numbers(
    verb: str, little: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, numbers = VERBS[verb]
    with ls.config(batch_size=16, progress=False):
        whole = numbers(run(little))
        with (
            memory_for(little, 6, monkeypatch) as tried,
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            halved = numbers(run(little))
    assert max(tried) <= 6
    told = r"memory ran out at \d+ examples at once; \d+ are run"
    assert any(re.match(told, str(one.message)) for one in said)
    assert whole.keys() == halved.keys()
    # Float32's rounding, which each step of Adam divides by the size of the gradient: a hundredth
    # of one step (of 1e-2 in fit_prompt, of 1e-3 in the others).
    atol = 1e-4 if "fit_prompt" in verb else 2e-5
    for name, value in whole.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(
                halved[name], value, atol=atol, rtol=1e-4, equal_nan=True, msg=f"{verb}: {name}"
            )
        else:
            assert halved[name] == value
    assert hooks_on(as_adapter(little).model) == []


def test_the_gradient_is_that_of_the_whole_batch(little: Any, monkeypatch: Any) -> None:
    """Where memory runs out on the way back, too: what was added stays, and nothing twice."""
    own, sizes = torch.autograd.grad, list[int]()

    def grad(outputs: Tensor, *rest: Any, **more: Any) -> Any:
        sizes.append(1)
        if len(sizes) in (1, 3):  # the whole batch, then the second of its halves
            raise ERROR
        return own(outputs, *rest, **more)

    asked: dict[str, Any] = {"epochs": 1, "batch_size": 64, "clip": None, "held_out": HELD}
    for verb in (
        lambda: ls.finetune(little, SOME, UNITS, lr=1e-3, **asked),
        lambda: ls.fit_prompt(little, SOME, n_tokens=2, lr=1e-3, **asked),
    ):
        with ls.config(progress=False):
            whole = trained(verb())
            sizes.clear()
            with monkeypatch.context() as patched:
                patched.setattr(torch.autograd, "grad", grad)
                with pytest.warns(RuntimeWarning, match="at 48"):
                    halved = trained(verb())
        assert len(sizes) == 5  # 48 and 24 of them in vain; 24, 12 and 12
        for name, value in whole.items():
            # One step of Adam, which divides the gradient by its own size.
            torch.testing.assert_close(halved[name], value, atol=1e-6, rtol=1e-5)


def test_what_is_kept_is_given_up_first(little: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, prompt = as_adapter(little), initial_prompt(little, 2)
    spoken = with_soft_prompt(little, prompt)
    batches = training_batches(spoken, encode_examples(spoken, SOME[:16], answers=True), 8)
    passes = TrainingPasses(adapter, prompt, 100)
    with torch.no_grad():
        whole = [passes.losses(batch, prompt)[0] for batch in batches]
        kept = passes.n_bytes
        assert kept
        with memory_for(little, 4, monkeypatch), pytest.warns(RuntimeWarning, match="at 8"):
            halved = [
                torch.cat(passes.run(batch, lambda part: passes.losses(part, prompt)[0]))
                for batch in batches
            ]
    torch.testing.assert_close(torch.cat(halved), torch.cat(whole), atol=1e-5, rtol=1e-5)
    assert 0 < passes.n_bytes <= passes.budget == kept / 2


def test_memory_that_runs_out_is_not_taken_for_a_cache_of_another_make(
    little: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.ones(1, 3, dtype=torch.long)
    with memory_for(little, 0, monkeypatch), pytest.raises(RuntimeError, match="allocate memory"):
        writer_for(as_adapter(little), tokens, tokens.bool())


@pytest.mark.parametrize("verb", ["generate", "finetune, neurons", "dissect"])
def test_a_single_example_that_does_not_fit_is_named(
    verb: str, little: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"memory ran out at a single example \('.*, \d+ tokens"
    as_adapter(little).check_site("mlp.hook_post")  # a small pass of its own, once a model
    monkeypatch.setattr(warnings, "warn", lambda *_, **__: None)
    asked = ls.config(batch_size=4, progress=False)
    with memory_for(little, 0, monkeypatch), asked, pytest.raises(LensSkillsError, match=said):
        VERBS[verb][0](little)
    assert hooks_on(as_adapter(little).model) == []
