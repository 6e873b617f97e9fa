"""What prompts begin with alike is run once, and nothing else changes: the same numbers."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.activations import evaluate, shared_prefix, span, stream
from lens_skills.activations.forward import NOTHING, Encoded, encode_examples
from lens_skills.activations.locations import find_site, parse_position
from lens_skills.activations.shared_prefix import PrefixedPasses, by_beginning, shared_length
from lens_skills.activations.stream import batches, read_sites
from lens_skills.models import (
    SoftPrompt,
    as_adapter,
    kept_prefix,
    load_model,
    row_columns,
    with_soft_prompt,
)
from lens_skills.models.precision import in_precision
from tests.models.conftest import IMPLEMENTATIONS, needs_hooked
from tests.models.families import build, tokenizer

SHOWN = (
    "The key to the cabinets is on the table. The keys to the cabinet are on the table. "
    "The author near the doctors was here. "
)
ASKED = (
    "The boys near the judge", "The girl", "The keys to the cabinet and the doctor near the table",
    "The author", "The boy and the girls and the key", "The doctor near the girls", "The judge",
    "The actors and the boy",
)  # fmt: skip
FAMILIES = {
    "hooked": ("gpt2", "bloom", "gpt_neox", "llama", "qwen3", "mistral_window", "mixtral"),
    "bridge": (
        "gpt2", "bloom", "mpt", "opt", "gpt_neo", "gptj", "falcon_alibi", "llama", "stablelm",
        "gemma2", "gemma3_text", "qwen2_window", "deepseek_v3", "mixtral", "gpt_oss", "mamba",
        "lfm2",
    ),
}  # fmt: skip
UNKEPT = ("mamba", "lfm2")
BY_VERSION = ("falcon_alibi", "mpt")  # exact on TransformerLens 4.3, not on 3.9: the trial tells
EXPERTS = ("mixtral", "gpt_oss", "deepseek_v3", "mamba", "lfm2")
CASES = [(kind, family) for kind in IMPLEMENTATIONS for family in FAMILIES[kind]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches of six, so that a prefix serves several, and trials from the first example on."""
    monkeypatch.setattr(shared_prefix, "_WORTH_A_TRIAL", 1)
    with ls.config(batch_size=6, progress=False):
        yield


@cache
def model_of(kind: str, family: str) -> Any:
    return load_model(build(family), tokenizer=tokenizer(), implementation=kind)


def task_of(prompts: Any = None, **more: Any) -> ls.Task:
    prompts = [SHOWN + asked for asked in ASKED] if prompts is None else prompts
    pairs = [(" is", " are"), (" are", " is")]
    return ls.Task(
        "shown",
        [
            ls.Example(id=str(k), prompt=prompt, answer=pairs[k % 2][0], foil=pairs[k % 2][1],
                       labels={"odd": float(k % 2)}, **more)
            for k, prompt in enumerate(prompts)
        ],
    )  # fmt: skip


Read = tuple[list[torch.Tensor], torch.Tensor]


def read(model: Any, task: Any, **options: Any) -> Read:
    values: list[Any] = [None] * len(task)
    metrics = torch.zeros(len(task), 2, dtype=torch.float64)
    for batch in stream(model, task, metrics=["confidence", "entropy"], **options):
        for row, place in enumerate(batch.index.tolist()):
            found = batch.activations[row]
            values[place] = found if batch.mask is None else found[batch.mask[row]]
            metrics[place] = torch.stack([m[row] for m in batch.metrics.values()])
    return values, metrics


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Reads both ways, compares, and says how many batches were run behind a prefix."""
    behind: list[int] = []
    own = PrefixedPasses.of

    def of(self: Any, batch: Any) -> Any:
        parts, run = own(self, batch)
        if self.prefix is not None:
            behind.append(len(self.prefix))
        return parts, run

    monkeypatch.setattr(PrefixedPasses, "of", of)

    def run(model: Any, task: Any, **options: Any) -> int:
        behind.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shared_prefix, "may_keep", lambda adapter: False)
            wanted, odds = read(model, task, **options)
        assert not behind
        found, found_odds = read(model, task, **options)
        torch.testing.assert_close(found_odds, odds, atol=1e-5, rtol=1e-4)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=0)
        return len(behind)

    return run


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_every_family_gives_the_same_numbers(kind: str, family: str, both: Any) -> None:
    model = model_of(kind, family)
    at = "hook_resid_post" if family in EXPERTS else "mlp.hook_post"
    behind = both(model, task_of(), at=at)
    assert behind in ((0, 2) if family in BY_VERSION else (0,) if family in UNKEPT else (2,))


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("position", "at"),
    [
        ([0, 2, -1], "mlp.hook_post"), ("mean", "hook_resid_post"), ("max", "mlp.hook_pre"),
        ("all", "attn.hook_z"), (-2, "hook_mlp_out"), (1, "hook_resid_pre"), (-1, "attn.hook_k"),
    ],
)  # fmt: skip
def test_every_position_and_site(kind: str, position: Any, at: str, both: Any) -> None:
    assert both(model_of(kind, "llama"), task_of(), position=position, at=at) == 2
    assert both(model_of(kind, "gpt_neox"), task_of(), position=position, at=at, layers=1) == 2


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_a_span_before_and_behind_the_end_of_the_prefix(kind: str, both: Any) -> None:
    # The first batch holds it in what is asked, the last one in what is shown to all.
    prompts = [SHOWN + asked for asked in ("The doctors", "The judge", *["The girl"] * 10)]
    task = task_of(prompts)
    assert both(model_of(kind, "llama"), task, position=span("doctors")) >= 1


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_several_templates_each_have_their_prefix(kind: str, both: Any) -> None:
    other = "When the girls have and the keys and then the boys and the girl was and the doctor. "
    prompts = [(SHOWN if k % 2 else 2 * other) + asked for k, asked in enumerate(4 * ASKED)]
    task, model = task_of(prompts), model_of(kind, "llama")
    encoded = encode_examples(as_adapter(model), task, answers=False)
    groups = by_beginning(encoded)
    assert sorted(map(len, groups)) == [16, 16]
    assert both(model, task) == 6


def test_groups_are_told_apart_only_where_it_saves() -> None:
    model = model_of("bridge", "llama")
    few = encode_examples(as_adapter(model), task_of(ASKED), answers=False)
    assert len(by_beginning(few)) == 1
    assert shared_length([[5, 6], [5, 6], [5, 6, 7]]) == 1
    assert shared_length([[5], [5, 6]]) == 0


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_a_prompt_that_another_one_begins_with(kind: str, both: Any) -> None:
    ends = ("", *(" near the " + word for word in ("boy", "girl", "judge", "boys", "key")))
    task = task_of([SHOWN + "The author" + end for end in ends])
    assert both(model_of(kind, "llama"), task) == 1
    assert both(model_of(kind, "llama"), task_of([SHOWN + "The author"] * 7)) == 2


def test_a_batch_of_one_and_prompts_with_nothing_in_common(both: Any) -> None:
    model = model_of("bridge", "llama")
    assert both(model, task_of([SHOWN])) == 0
    assert both(model, task_of(["The key is here.", "A table", "In the judge's house"])) == 0


def test_a_beginning_that_ends_within_a_token(both: Any) -> None:
    # "the doctor" and "the doctors": the same text, other tokens at its end.
    model = model_of("bridge", "llama")
    task = task_of([SHOWN + "The doctor" + end for end in ("", "s", "s near", " near", "'s", "s'")])
    rows = [item.prompt_tokens for item in encode_examples(as_adapter(model), task, answers=False)]
    text = as_adapter(model).encode(SHOWN + "The doctor")
    assert shared_length(rows) < len(text)
    assert both(model, task) == 1


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_a_soft_prompt_before_the_input_is_shared(kind: str, both: Any) -> None:
    model = model_of(kind, "llama")
    adapter = as_adapter(model)
    vectors = torch.linspace(-1, 1, 40 * adapter.d_model).view(40, -1)
    prompt = SoftPrompt(
        prefix=vectors[:36], suffix=vectors[36:], model=adapter.name,
        model_fingerprint=adapter.fingerprint(), trained=False, init="random", seed=0,
    )  # fmt: skip
    assert both(model, task_of(ASKED), prompt=prompt) == 2
    spoken = with_soft_prompt(model, prompt)
    found = encode_examples(spoken, task_of(ASKED), answers=False)
    assert shared_length([item.prompt_tokens for item in found]) >= 36


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_a_chat_is_shared_up_to_the_users_words(kind: str, both: Any) -> None:
    words = tokenizer()
    words.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} near the table. {% endfor %}"
        "{% if add_generation_prompt %}the girls have {% endif %}"
    )
    model = load_model(build("llama"), tokenizer=words, implementation=kind)
    assert both(model, task_of(ASKED), chat=SHOWN) == 2


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_metrics_of_answers_and_options(kind: str) -> None:
    model = model_of(kind, "llama")
    options = (" is on the table", " are on the table", " was")
    examples = [
        ls.Example(id=e.id, prompt=e.prompt, answer=options[k % 3], options=options)
        for k, e in enumerate(task_of())
    ]
    names = ["correct", "logit_diff"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefix, "may_keep", lambda adapter: False)
        wanted = evaluate(model, ls.Task("t", examples), names)
    found = evaluate(model, ls.Task("t", examples), names)
    for name in names:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-4)


def test_a_users_hook_sees_whole_rows() -> None:
    model, seen = model_of("bridge", "gpt2"), []
    width = max(len(as_adapter(model).encode(example.prompt)) for example in task_of())
    read(model, task_of())  # the first reading of an architecture is compared with a plain pass
    model.blocks[1].hook_out.add_hook(lambda value, hook: seen.append(value.shape[1]))
    try:
        read(model, task_of())
    finally:
        model.reset_hooks()
    assert (max(seen), len(seen)) == (width, 2)


@needs_hooked
def test_a_hook_point_of_another_shape_goes_the_plain_way(both: Any) -> None:
    # Rotated keys are those of the prefix, too: no column of a row is where it is looked for.
    assert both(model_of("hooked", "llama"), task_of(), at="attn.hook_rot_k") == 0


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_a_prefix_that_changes_numbers_is_refused(kind: str, monkeypatch: Any, both: Any) -> None:
    own = kept_prefix.KeptPrefix.whole
    cache = kept_prefix.KeptPrefix.hooked_cache

    def wrong(self: Any, *args: Any) -> Any:
        self.layers[1][1].mul_(1.01)
        return (own if kind == "bridge" else cache)(self, *args)

    name = "whole" if kind == "bridge" else "hooked_cache"
    monkeypatch.setattr(kept_prefix.KeptPrefix, name, wrong)
    model = load_model(build("llama"), tokenizer=tokenizer(), implementation=kind)
    assert both(model, task_of()) == 0


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral"])
def test_the_last_mlp_runs_where_something_is_read(kind: str, family: str, both: Any) -> None:
    model = model_of(kind, family)
    task = task_of(ASKED)
    at = "hook_resid_post" if family in EXPERTS else "mlp.hook_post"
    assert both(model, task, position=[-1, -2], at=at) == 0
    widths: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        taken = row_columns.rows_at
        patch.setattr(row_columns, "rows_at", lambda *a: widths.append(a[1].shape[1]) or taken(*a))
        read(model, task, position=[-1, -2], at=at)
    assert widths
    assert set(widths) <= {1, 3}


@needs_hooked
def test_an_mlp_that_looks_at_its_neighbours_runs_whole(both: Any) -> None:
    model = load_model(build("llama"), tokenizer=tokenizer(), implementation="hooked")
    mlp, widths = model.blocks[2].mlp, []
    own = mlp.forward

    def mixing(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        widths.append(tuple(hidden.shape[:2]))
        return own(hidden + torch.cumsum(hidden, dim=1), *args, **kwargs)

    mlp.forward = mixing
    both(model, task_of(ASKED))
    assert widths.count((2, 2)) == 1  # the trial, and no batch


def test_batches_hold_every_example_once_whatever_is_skipped() -> None:
    model = model_of("bridge", "llama")
    adapter = as_adapter(model)
    task = task_of([(SHOWN if k % 3 else "") + asked for k, asked in enumerate(3 * ASKED)])
    plan = NOTHING
    encoded = encode_examples(adapter, task, answers=False)
    whole = [[item.index for item in batch] for batch in batches(encoded, plan)]
    assert sorted(index for batch in whole for index in batch) == list(range(len(task)))
    later = [[item.index for item in batch] for batch in batches(encoded, plan, skip=2)]
    assert later == whole[2:]


def test_score_is_the_same_with_and_without() -> None:
    model = model_of("bridge", "llama")
    task = task_of([SHOWN + asked for asked in 3 * ASKED])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefix, "may_keep", lambda adapter: False)
        wanted = ls.score(model, task, metrics=["label:odd", "entropy"], n_permutations=19)
    found = ls.score(model, task, metrics=["label:odd", "entropy"], n_permutations=19)
    for name in ("label:odd", "entropy"):
        torch.testing.assert_close(found[name].strength, wanted[name].strength, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:nothing on")
@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_reduced_precision_is_tried_by_its_own_measure(kind: str) -> None:
    adapter = in_precision(as_adapter(model_of(kind, "gpt_neox")), "bfloat16")
    behind: list[bool] = []
    own = PrefixedPasses.of

    def of(self: Any, batch: Any) -> Any:
        found = own(self, batch)
        behind.append(self.prefix is not None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefix, "may_keep", lambda adapter: False)
        wanted, _ = read(adapter, task_of())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrefixedPasses, "of", of)
        found, _ = read(adapter, task_of())
    assert behind == [True, True]
    gap = (torch.stack(found) - torch.stack(wanted)).abs().mean()
    assert gap <= 0.05 * torch.stack(wanted).abs().mean()


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_activations_and_gates_are_read_behind_one_prefix(kind: str) -> None:
    adapter = as_adapter(model_of(kind, "llama"))
    encoded = encode_examples(adapter, task_of(), answers=False)
    sites = [find_site(adapter, at) for at in ("mlp.hook_post", "mlp.hook_pre")]

    def both_sites() -> list[torch.Tensor]:
        found = list(read_sites(adapter, encoded, NOTHING, sites, parse_position("last")))
        order = torch.cat([batch.index for batch in found]).argsort()
        gates = [batch.gate for batch in found if batch.gate is not None]
        return [torch.cat(part)[order] for part in ([b.activations for b in found], gates)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefix, "may_keep", lambda adapter: False)
        wanted = both_sites()
    for one, other in zip(both_sites(), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_pair_of_a_trial_is_found_without_looking_at_every_prompt() -> None:
    """The first of the shortest and the last of the longest of those that begin so and go on."""
    random = np.random.default_rng(0)
    rows = [random.integers(0, 3, size=random.integers(1, 7)) for _ in range(400)]
    rows += [np.array([255, 256]), np.array([255, 256, 65_535]), np.array([2**31 - 1, 0, 0])]
    encoded = [Encoded.__new__(Encoded) for _ in rows]
    for one, row in zip(encoded, rows, strict=True):
        object.__setattr__(one, "prompt_tokens", row)
    passes = PrefixedPasses.__new__(PrefixedPasses)
    passes.encoded = encoded
    for begins in ([], [0], [2, 1], [0, 0, 1], [255], [255, 256], [2**31 - 1]):
        n = len(begins)
        like = [
            one
            for one in encoded
            if len(one.prompt_tokens) > n and one.prompt_tokens[:n].tolist() == begins
        ]
        like.sort(key=lambda one: len(one.prompt_tokens))
        found = passes._pair(begins)
        assert found[0] is like[0]
        assert found[1] is like[-1]
