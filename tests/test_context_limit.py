"""Prompts at the end of the model's context: all of it is read, one token more is refused early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt, as_adapter
from tests.tiny_tokenizer import tiny_tokenizer

ABLATE = ls.ablate("zero")
ANSWER = " b"
METRIC: dict[str, Any] = {"metric": "answer_probability"}
VERBS: dict[str, Callable[[Any, ls.Task, Path], Any]] = {
    "score": lambda m, t, _: ls.score(m, t, metrics=["entropy"], n_permutations=19),
    "score_part": lambda m, t, _: ls.score_part(m, t[-9:], t, metrics=["entropy"]),
    "rank": lambda m, t, _: ls.rank(m, t, "entropy"),
    "capture": lambda m, t, at: ls.capture(m, t, at / "table"),
    "preflight": lambda m, t, _: ls.preflight(m, t),
    "prescreen": lambda m, t, _: ls.prescreen(m, t, ["L1N5"], do=ABLATE, **METRIC),
    "sweep": lambda m, t, _: ls.sweep(m, t, ["L1N5"], do=ABLATE, **METRIC),
    "verify": lambda m, t, _: ls.verify(m, t, ["L1N5"], do=ABLATE, **METRIC),
    "dose_response": lambda m, t, _: ls.dose_response(m, t, ["L1N5"], **METRIC),
    "redundancy": lambda m, t, _: ls.redundancy(m, t, ["L1N5", "L1N6"]),
    "activating_examples": lambda m, t, _: ls.activating_examples(m, t, ["L1N5"]),
    "generate": lambda m, t, _: ls.generate(m, t, max_new_tokens=1),
    "fit_prompt": lambda m, t, _: ls.fit_prompt(m, t, n_tokens=1, seeds=1),
    "finetune": lambda m, t, _: ls.finetune(m, t, ["L1N5"], seeds=1),
}
TRIAL = 8
"""Tokens of the passes by which a model is tried out first; one more reads a single example."""


def of_length(model: Any, n: int, *, answer_counts: bool = True, n_few: int = 23) -> ls.Task:
    """Prompts of which one has so many tokens, with or without its answer, and the others few."""
    adapter = as_adapter(model)
    more = len(adapter.encode("a" + ANSWER)) - len(adapter.encode("a")) if answer_counts else 0
    words = "a" + " a" * (n - more - len(adapter.encode("a")))
    assert len(adapter.encode(words)) + more == n
    few = [
        Example(id=f"few {k}", prompt="a b" + " a" * k, answer=ANSWER, group=f"{k}")
        for k in range(1, n_few + 1)
    ]
    long = Example(id="long", prompt=words, answer=ANSWER, group="long")
    return ls.Task("some", [*few, long])


@pytest.mark.parametrize("verb", VERBS)
def test_one_token_too_many_is_refused_before_the_task_is_read(
    tiny: Any, verb: str, tmp_path: Path
) -> None:
    model, limit = as_adapter(tiny).model, tiny.cfg.n_ctx
    task = of_length(tiny, limit + 1, answer_counts=False)
    shapes: list[tuple[int, int]] = []

    def count(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        shapes.append(tuple([*args, *options.values()][0].shape[:2]))

    handle = model.blocks[0].register_forward_pre_hook(count, with_kwargs=True)
    try:
        with pytest.raises(LensSkillsError, match=f"'long'.* reads at most {limit}. Shorten"):
            VERBS[verb](tiny, task, tmp_path)
    finally:
        handle.remove()
    assert len(shapes) <= 2
    assert all(rows == 1 or width <= TRIAL for rows, width in shapes)
    assert verb not in ("fit_prompt", "generate", "preflight") or not shapes
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("verb", ["preflight", "sweep", "verify", "dose_response", "fit_prompt"])
def test_the_answer_takes_part_of_the_context(tiny: Any, verb: str, tmp_path: Path) -> None:
    task = of_length(tiny, tiny.cfg.n_ctx + 1)
    with pytest.raises(LensSkillsError, match=r"'long' has \d+ \+ \d+ tokens"):
        VERBS[verb](tiny, task, tmp_path)


def test_what_is_written_takes_part_of_the_context(tiny: Any) -> None:
    task = of_length(tiny, tiny.cfg.n_ctx - 1, answer_counts=False)
    assert len(ls.generate(tiny, task, max_new_tokens=1)) == len(task)
    with pytest.raises(LensSkillsError, match=r"'long'.* by 2, but the model reads at most"):
        ls.generate(tiny, task, max_new_tokens=2)


@pytest.mark.parametrize("short", [1, 0])
def test_at_the_limit_the_numbers_are_those_of_the_model(
    tiny: Any, tiny_hf: tuple[Any, Any], short: int
) -> None:
    task = of_length(tiny, tiny.cfg.n_ctx - short, answer_counts=False)
    found = ls.score(tiny, task, metrics=["entropy"], n_permutations=0).values["entropy"]
    for example, entropy in zip(task, found.tolist(), strict=True):
        tokens = torch.tensor([as_adapter(tiny).encode(example.prompt)])
        with torch.no_grad():
            told = tiny_hf[0](tokens).logits[0, -1].double().log_softmax(-1)
        assert entropy == pytest.approx(float(-(told.exp() * told).sum()), abs=2e-4)


@pytest.mark.parametrize("short", [1, 0])
def test_a_batch_to_the_limit_is_as_one_by_one(tiny: Any, short: int) -> None:
    task = of_length(tiny, tiny.cfg.n_ctx - short, answer_counts=False, n_few=2)
    options: dict[str, Any] = {"do": ABLATE, "metric": "entropy"}
    with ls.config(batch_size=len(task)):
        together = ls.sweep(tiny, task, ["L1N5"], **options)
    with ls.config(batch_size=1):
        alone = ls.sweep(tiny, task, ["L1N5"], **options)
    torch.testing.assert_close(together.clean, alone.clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.total, alone.total, atol=1e-5, rtol=0)
    assert together.total[0, -1].abs() > 1e-4


@pytest.mark.parametrize("before", [0, 1])
def test_a_soft_prompt_takes_part_of_the_context(tiny: Any, before: int) -> None:
    adapter = as_adapter(tiny)
    vectors = torch.randn(2, adapter.d_model, generator=torch.Generator().manual_seed(0))
    soft = SoftPrompt(
        suffix=vectors[before:], prefix=vectors[:before], model=adapter.name,
        model_fingerprint=adapter.fingerprint(), trained=False, init="normal", seed=0,
    )  # fmt: skip
    options: dict[str, Any] = {"metrics": METRIC["metric"], "n_permutations": 0, "prompt": soft}
    full = of_length(tiny, tiny.cfg.n_ctx - 2, n_few=8)
    with ls.config(batch_size=1):
        alone = ls.score(tiny, full, **options).values[METRIC["metric"]]
    together = ls.score(tiny, full, **options).values[METRIC["metric"]]
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=1e-4)
    with pytest.raises(LensSkillsError, match=r"'long'.* \(2 of them the soft prompt's\)"):
        ls.score(tiny, of_length(tiny, tiny.cfg.n_ctx - 1), **options)


def test_a_table_of_positions_is_read_to_its_end(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer()
    ids = {
        f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")
    }
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = ls.load_model(str(tmp_path))
    options: dict[str, Any] = {"metrics": ["answer_probability"], "n_permutations": 0}
    with ls.config(batch_size=1):
        alone = ls.score(model, of_length(model, 40, n_few=8), **options).values[
            "answer_probability"
        ]
    together = ls.score(model, of_length(model, 40, n_few=8), **options).values[
        "answer_probability"
    ]
    torch.testing.assert_close(together, alone, atol=1e-7, rtol=1e-4)
    with pytest.raises(LensSkillsError, match=r"'long' has .* reads at most 40"):
        ls.score(model, of_length(model, 41), **options)
