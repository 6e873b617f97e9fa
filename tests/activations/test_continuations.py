"""Answers, foils and options read as one tree give what each gives in a pass of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations import evaluate, parse_metrics, shared_prefix, stream
from lens_skills.activations import forward as room
from lens_skills.activations.continuations import ContinuationTree, Scores
from lens_skills.data import Example
from lens_skills.models import SoftPrompt, as_adapter, load_model
from lens_skills.models.partial_forward import CannotResume, prefill
from tests.models.conftest import IMPLEMENTATIONS
from tests.models.families import build as build_family
from tests.models.families import tokenizer
from tests.models.test_suffix import build

PROMPTS = [[1, 40, 41, 42, 43, 44, 45], [1, 50, 51], [1, 60, 61, 62]]
CONTINUATIONS: list[list[tuple[int, ...]]] = [
    # The answer begins another; two share a beginning; one is the answer again.
    [(7,), (7, 8), (7, 9, 10), (30, 9, 10), (30, 9, 11, 12), (7,)],
    [(20, 21, 22), (23,), (20, 24, 25)],
    [(5, 6)],
]


def alone(adapter: Any, prompt: Sequence[int], path: Sequence[int]) -> tuple[float, bool, int]:
    """Log-probability and greedy success in one unpadded pass, and the first choice after it."""
    row = torch.tensor([[*prompt, *path]])
    mask = torch.ones_like(row, dtype=torch.bool)
    at = torch.arange(len(prompt) - 1, row.shape[1])[None]
    logits = adapter.forward(row, mask, readers={}, logits_at=at)[0].double()
    shares, target = logits.log_softmax(-1), torch.tensor(path)
    each = shares[:-1].gather(-1, target[:, None])[:, 0]
    choices = logits.argmax(-1)
    return float(each.sum()), bool((choices[:-1] == target).all()), int(choices[-1])


def tree_of(adapter: Any, continuations: Any = None, *, stop: bool) -> ContinuationTree:
    paths = CONTINUATIONS if continuations is None else continuations
    return ContinuationTree.of(PROMPTS, paths, stop=stop, pad=adapter.pad_id, device=adapter.device)


def branched(adapter: Any, tree: ContinuationTree, n_sets: int = 1, start: int = 0) -> Scores:
    """The scores of a tree behind the prompts, or of several sets run again from the bottom."""
    suffix = prefill(
        adapter, tree.tokens, tree.mask, start=min(start or tree.start, tree.start),
        readers={}, branches=tree.branches,
    )  # fmt: skip
    out = suffix.entering[-1][None]
    if n_sets > 1:
        out = suffix.run(suffix.clean(0, n_sets), 0)
    return Scores.of(tree, tree.suffix_logits(suffix, out), n_sets=n_sets, first=True)


def check(adapter: Any, scores: Scores, n_sets: int = 1, *, stop: bool) -> None:
    n = len(PROMPTS)
    for row in range(n * n_sets):
        for number, path in enumerate(CONTINUATIONS[row % n]):
            wanted, greedy, after = alone(adapter, PROMPTS[row % n], path)
            assert float(scores.log_probability[row, number]) == pytest.approx(wanted, abs=1e-4)
            assert bool(scores.greedy[row, number]) == greedy
            if stop and number == 0:
                assert scores.after is not None
                assert int(scores.after[row]) == after


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("n_sets", [1, 3])
def test_each_continuation_is_what_it_is_alone(tiny: Any, stop: bool, n_sets: int) -> None:
    adapter = as_adapter(tiny)
    tree = tree_of(adapter, stop=stop)
    scores = branched(adapter, tree, n_sets, start=1)
    check(adapter, scores, n_sets, stop=stop)
    plain = tree.plain_logits(adapter.forward, {}, lambda *_: {}, adapter.pad_id)
    check(adapter, Scores.of(tree, plain, first=True), stop=stop)


def test_the_tree_holds_each_beginning_once(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    tree = tree_of(adapter, stop=False)
    assert tree.branches is not None
    # Read are (30, 9, 11) in the row and (7), (7, 9), of the second (20, 21) and (20, 24).
    assert tree.branches.real.sum(1).tolist() == [2, 1, 0]
    assert int(tree.mask.sum()) == sum(map(len, PROMPTS)) + 3 + 2 + 1
    none = tree_of(adapter, [[(7,), (8,)], [(9,)], [(5,), (5,)]], stop=False)
    assert none.branches is None
    assert none.tokens.shape == (3, 7)
    bare = tree_of(adapter, [[], [(9, 8)], []], stop=False)
    assert bare.branches is None
    assert bare.real.sum().item() == 4


def test_the_greedy_path_is_found(tiny: Any) -> None:
    """Random continuations are never the first choice: here one is."""
    adapter = as_adapter(tiny)
    paths = []
    for prompt in PROMPTS:
        written: list[int] = []
        for _ in range(3):
            written.append(alone(adapter, prompt, written)[2])
        paths.append([tuple(written), (written[0], 9, 9), (9, written[1])])
    tree = tree_of(adapter, paths, stop=True)
    scores = branched(adapter, tree)
    assert scores.greedy.tolist() == [[True, False, False]] * 3


@pytest.mark.parametrize("kind", ["gpt2", "neox", "window", "gemma2", "bloom"])
@pytest.mark.parametrize("implementation", ["hooked", "bridge"])
def test_other_architectures(
    kind: str, implementation: str, tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    """Learned and rotary positions, windows shorter than the prompt, caps; ALiBi is refused."""
    if implementation == "hooked":
        request.getfixturevalue("tiny_hooked")
        if kind == "gemma2":
            pytest.skip("load_model opens it as a bridge only")
    adapter = as_adapter(build(kind, implementation, tiny_folder))
    tree = tree_of(adapter, stop=True)
    if kind == "bloom":
        with pytest.raises(CannotResume):
            branched(adapter, tree)
    else:
        check(adapter, branched(adapter, tree, 2, start=2), 2, stop=True)
    examples = [example(k) for k in range(5)]
    found = values(adapter, examples)
    assert found == pytest.approx(plain(adapter, examples), abs=1e-4)


WORDS = [" 1", " 12", " 123", " keys are", " keys is old", " 7 dogs"]


def example(k: int) -> Example:
    others = tuple(dict.fromkeys([WORDS[k], *WORDS[: 2 + k % 3]]))
    prompt = "The keys" + " by the door" * (k % 3)
    foil = WORDS[(k + 1) % len(WORDS)]
    return Example(str(k), prompt, WORDS[k], foil=foil, options=others)


METRICS = [
    "correct",
    "confidence",
    ls.metrics.logit_diff(),
    ls.metrics.confidence("answer"),
    ls.metrics.confidence("entropy", over="options"),
]


def values(model: Any, examples: Sequence[Example], **options: Any) -> Tensor:
    return torch.stack(list(evaluate(model, examples, METRICS, **options).values()))


def plain(model: Any, examples: Sequence[Example], **options: Any) -> Tensor:
    """The same from ordinary passes, one example at a time, found by refusing all else."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise CannotResume("not here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "prefill", refuse)
        return torch.cat([values(model, [item], **options) for item in examples], dim=1)


def counted(patch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def count(*args: Any, **options: Any) -> Any:
        made.append(prefill(*args, **options))
        return made[-1]

    patch.setattr(room, "prefill", count)
    return made


def test_metrics_are_those_of_passes_of_their_own(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [example(k) for k in range(6)]
    wanted = plain(tiny, examples)
    made = counted(monkeypatch)
    torch.testing.assert_close(values(tiny, examples), wanted, atol=1e-5, rtol=1e-5)
    assert len(made) == 1


def test_readers_see_the_prompts_rows_only(tiny: Any) -> None:
    examples = [example(k) for k in range(6)]
    for position in ("last", 1, "mean", "all"):
        parts = []
        for metrics in ((), METRICS):
            rows = {}
            for batch in stream(tiny, examples, position=position, metrics=metrics):
                for row, item in enumerate(batch.index.tolist()):
                    kept = slice(None) if batch.mask is None else batch.mask[row]
                    rows[item] = batch.activations[row][kept]
            parts.append(rows)
        for k in range(6):
            torch.testing.assert_close(parts[0][k], parts[1][k], atol=1e-4, rtol=1e-4)


def test_a_chat_and_a_soft_prompt(tiny: Any) -> None:
    examples, adapter = [example(k) for k in range(6)], as_adapter(tiny)
    generator = torch.Generator().manual_seed(0)
    suffix, prefix = (0.3 * torch.randn(n, adapter.d_model, generator=generator) for n in (3, 2))
    soft = SoftPrompt(suffix, prefix, adapter.name, adapter.fingerprint(), False, "random", 3)
    asked: list[dict[str, Any]] = [{"chat": True}, {"prompt": soft}]
    for options in asked:
        wanted = plain(tiny, examples, **options)
        with pytest.MonkeyPatch.context() as patch:
            made = counted(patch)
            found = values(tiny, examples, **options)
            assert made
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_users_hook_is_in_every_number(tiny: Any) -> None:
    """It would see other shapes: then each continuation has a pass of its own."""
    examples, before = [example(k) for k in range(6)], values(tiny, [example(0)])
    point = tiny.hook_dict["blocks.1.hook_resid_post"]
    point.add_hook(lambda activation, hook: 1.5 * activation)
    try:
        found = values(tiny, examples)
        torch.testing.assert_close(found, plain(tiny, examples), atol=1e-5, rtol=1e-5)
        assert float((found[:, :1] - before).abs().max()) > 1e-3
    finally:
        tiny.reset_hooks()


def test_a_model_that_differs_is_read_plainly(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first branches are compared with an ordinary pass; then it is not tried again."""
    examples = [example(k) for k in range(6)]
    wanted, tries = plain(tiny, examples), []

    def wrong(*args: Any, **options: Any) -> Any:
        suffix = prefill(*args, **options)
        suffix.entering[-1] = suffix.entering[-1] + 0.1 * torch.randn_like(suffix.entering[-1])
        tries.append(1)
        return suffix

    monkeypatch.setattr(room, "prefill", wrong)
    adapter = as_adapter(tiny)
    with ls.config(batch_size=2):
        torch.testing.assert_close(values(adapter, examples), wanted, atol=1e-5, rtol=1e-5)
    assert tries == [1]


def test_a_hook_point_after_the_blocks_is_read_plainly(tiny: Any) -> None:
    adapter, seen = as_adapter(tiny), list[Tensor]()
    metrics = parse_metrics(METRICS)
    encoded, plan = room.prepare(adapter, [example(k) for k in range(3)], metrics)
    readers = {"ln_final.hook_normalized": seen.append}
    found = room.forward_batch(adapter, encoded, plan, metrics, {}, readers)
    assert len(seen) == 1
    assert len(found) == len(metrics)


def spied(patch: pytest.MonkeyPatch, passes: list[Any]) -> None:
    """Notes every batch that is read in passes of its own."""
    own = ContinuationTree.plain_logits

    def note(*args: Any) -> Any:
        passes.append(1)
        return own(*args)

    patch.setattr(ContinuationTree, "plain_logits", note)


SHOWN = "The key to the cabinets is on the table. The keys to the cabinet are on the table. " * 2
ASKED = (
    "The boys near the judge", "The girl", "The keys to the cabinet and the doctor",
    "The author", "The boy and the girls and the key", "The judge",
)  # fmt: skip
FAMILIES = {
    "hooked": ("gpt2", "bloom", "gpt_neox", "mistral_window", "mixtral"),
    "bridge": (
        "gpt2", "bloom", "opt", "gptj", "falcon_alibi", "gemma3_text", "qwen2_window",
        "deepseek_v3", "gpt_oss", "lfm2",
    ),
}  # fmt: skip
NO_BRANCHES = ("bloom", "falcon_alibi", "lfm2")


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
@pytest.mark.parametrize("shown", ["", SHOWN], ids=["alone", "shared"])
def test_every_family_behind_a_shared_prefix_and_without(
    kind: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches behind the rest of a row, which stands behind what all rows begin with."""
    monkeypatch.setattr(shared_prefix, "_WORTH_A_TRIAL", 1)
    options = (" is on the table", " are on the table", " is", " was on it")
    examples = [
        Example(str(k), shown + asked, options[k % 4], foil=options[(k + 1) % 4], options=options)
        for k, asked in enumerate(ASKED)
    ]
    for family in FAMILIES[kind]:
        model = load_model(build_family(family), tokenizer=tokenizer(), implementation=kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shared_prefix, "may_keep", lambda adapter: False)
            wanted = plain(model, examples)
        with pytest.MonkeyPatch.context() as patch:
            made, passes = counted(patch), list[Any]()
            spied(patch, passes)
            found = values(model, examples)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4, msg=family)
        assert bool(passes) == (family in NO_BRANCHES), family
        if family not in NO_BRANCHES:
            assert made, family
            assert made[0].before > 10 or not shown, family
