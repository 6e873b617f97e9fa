"""Tiny models of many architectures: nothing is silently wrong, and nothing ends in a raw error.

The whole table is `benchmarks/families.py`'s; here a part of it is measured again.
"""

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.models.conftest import IMPLEMENTATIONS
from tests.models.families import FAMILIES, tokenizer
from tests.models.family_verbs import LETTERS, VERBS, Case, judge

TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "families.json"
LINE = ".".join(version("transformer-lens").split(".")[:2])
QUICK = {
    "hooked": ("gpt2", "bloom", "gpt_neox", "llama_biases", "qwen2_window", "mixtral", "gemma2"),
    "bridge": (
        "gpt_neo", "opt_projected", "opt_post_norm", "openai-gpt", "bloom", "mpt", "gpt_neox",
        "gptj", "phi", "falcon_alibi", "falcon_new", "cohere", "llama", "qwen2_window", "olmo2",
        "granite", "gemma2", "gemma3_text", "glm4", "arcee_in_memory", "mixtral", "glm4_moe",
        "gpt_oss", "mamba", "bamba", "rwkv", "bert", "t5", "headless",
    ),
}  # fmt: skip
WHOLE = ("llama", "gpt_neox", "gemma2")  # in the bridge: the verbs that take long
QUICK_VERBS = ("open", "score", "edit")
CASES = [(kind, family) for kind in IMPLEMENTATIONS for family in QUICK[kind]]


@cache
def words() -> Any:
    return tokenizer()


def committed(column: str, family: str) -> dict[str, str] | None:
    """A letter for each verb, of the table on the page; None where the column was not measured."""
    found = json.loads(TABLE.read_text(encoding="utf-8"))["outcomes"].get(column)
    return None if found is None else dict(zip(VERBS, found[family], strict=True))


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_family_is_right_or_refused(kind: str, family: str) -> None:
    case = Case(family, kind, words())
    more = tuple(VERBS) if kind == "bridge" and family in WHOLE else QUICK_VERBS
    on_page = committed(f"{LINE} {kind}", family)
    for verb in more:
        outcome = judge(case, verb)
        assert outcome.kind in ("right", "refused"), f"{verb}: {outcome}"
        if on_page is not None:
            assert LETTERS[outcome.kind] == on_page[verb], (
                f"{verb} of {family} is {outcome}; the page says {on_page[verb]!r}: run "
                f"benchmarks/families.py --save --only {family}"
            )


def test_the_table_is_of_every_family_and_without_a_wrong_number() -> None:
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    assert found["outcomes"]
    for column, rows in found["outcomes"].items():
        assert set(rows) == set(FAMILIES), column
        assert set("".join(rows.values())) <= {"y", "n"}, column


def test_the_judge_sees_a_model_that_is_not_the_same() -> None:
    case = Case("llama", "bridge", words())
    assert judge(case, "open").kind == "right"
    case.plain.model.model.layers[1].mlp.down_proj.weight.data.mul_(1.05)
    case.plain._known.clear()
    for verb in ("open", "score", "sweep", "soft prompt", "circuit"):
        assert judge(case, verb).kind == "WRONG", verb
