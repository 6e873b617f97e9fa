"""`generate`: the same text for an example whatever stands beside it, and nothing lost."""

import hashlib
import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_skills.activations import capture, stream
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.generation import Graded, capture_text, generate, grade
from lens_skills.generation.generate import Continuer, chances, choose
from lens_skills.generation.graded import Written
from lens_skills.models import SoftPrompt, as_adapter, with_soft_prompt
from lens_skills.scoring import score
from lens_skills.settings import config
from lens_skills.tasks import Task

# The file, which the function of the same name hides.
MODULE = importlib.import_module("lens_skills.generation.generate")
N = 10
PROMPTS = (
    "The key to the cabinets",
    "When Mary and John went to the store, John gave a drink to",
    "What is 3 plus 4? Answer:",
    "The author near the doctors",
    "Premise: The judge saw the actor.",
    "We",
    "Tom and Anna said hello. The boy and the girls",
)


def task(n: int = 7) -> Task:
    return Task(
        "words",
        [
            Example(
                id=f"e{i}",
                prompt=PROMPTS[i % len(PROMPTS)] + " the" * (i // len(PROMPTS)),
                labels={"even": i % 2},
                covariates={"topic": f"t{i % 3}"},
                group=f"t{i % 5}",
            )
            for i in range(n)
        ],
    )


def soft(model: Any, n_before: int = 2) -> SoftPrompt:
    adapter = as_adapter(model)
    generator = torch.Generator().manual_seed(3)
    suffix = torch.randn(3, adapter.d_model, generator=generator)
    prefix = torch.randn(n_before, adapter.d_model, generator=generator)
    return SoftPrompt(suffix, prefix, adapter.name, adapter.fingerprint(), False, "random", 3)


def long(text: str, example: Example) -> dict[str, float]:
    return {"long": len(text) / 100, "odd": len(text) % 2}


def write(model: Any, examples: Any, **options: Any) -> Graded:
    with config(batch_size=options.pop("batch_size", None)):
        return generate(model, examples, **{"max_new_tokens": N, **options})


def same(one: Graded, other: Graded) -> None:
    assert one.tokens == other.tokens
    assert one.texts == other.texts
    assert one.ended == other.ended
    for name in ("mean_log_probability", "first_probability", "mean_entropy"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_text_depends_on_its_example_and_not_on_its_batch(tiny: Any, temperature: float) -> None:
    whole = write(tiny, task(), temperature=temperature, batch_size=7)
    same(whole, write(tiny, task(), temperature=temperature, batch_size=2))
    alone = write(tiny, task()[3:4], temperature=temperature)
    assert alone.tokens == whole.tokens[3:4]
    other = write(tiny, task(), temperature=temperature, seed=1)
    assert (other.tokens == whole.tokens) == (temperature == 0)


def test_confidence_is_what_one_whole_pass_says(tiny: Any) -> None:
    """Read again in one plain pass, the tokens have the log-probabilities of then."""
    adapter = as_adapter(tiny)
    graded = write(tiny, task(), temperature=1.0)
    for place, example in enumerate(task()):
        prompt = adapter.encode(example.prompt)
        row = [*prompt, *graded.tokens[place], *([adapter.eos_id] if graded.ended[place] else [])]
        tokens = torch.tensor([row])
        at = torch.arange(len(prompt) - 1, len(row) - 1)[None]
        mask = torch.ones_like(tokens, dtype=torch.bool)
        logits = adapter.forward(tokens, mask, readers={}, logits_at=at)
        assert logits is not None
        spread = logits[0].double().log_softmax(-1)
        chosen = spread.gather(-1, tokens[0, len(prompt) :, None])[:, 0]
        entropy = torch.distributions.Categorical(logits=spread).entropy()
        wanted = (chosen.mean(), chosen[0].exp(), entropy.mean())
        found = (
            graded.mean_log_probability[place],
            graded.first_probability[place],
            graded.mean_entropy[place],
        )
        torch.testing.assert_close(torch.stack(found), torch.stack(wanted), atol=1e-4, rtol=1e-4)


def test_greedy_texts_are_those_of_transformers(tiny: Any, tiny_hf: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_hf
    adapter, graded = as_adapter(tiny), write(tiny, task(), temperature=0)
    for example, tokens, text in zip(task(), graded.tokens, graded.texts, strict=True):
        prompt = torch.tensor([adapter.encode(example.prompt)])
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=N, do_sample=False
        )
        wanted = [t for t in out[0, prompt.shape[1] :].tolist() if t != tokenizer.eos_token_id]
        assert list(tokens) == wanted
        assert text == tokenizer.decode(wanted, skip_special_tokens=True)


def test_a_text_stops_where_it_ends(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = write(tiny, task(), temperature=0)
    end = free.tokens[1][4]
    monkeypatch.setattr(MODULE, "end_tokens", lambda *_, **__: {end})
    cut = write(tiny, task(), temperature=0)
    for place, tokens in enumerate(free.tokens):
        stop = tokens.index(end) if end in tokens else None
        assert cut.ended[place] == (stop is not None)
        assert cut.tokens[place] == (tokens if stop is None else tokens[:stop])


def test_a_soft_prompt_is_read_with_every_example(tiny: Any) -> None:
    prompt = soft(tiny)
    adapter = with_soft_prompt(tiny, prompt)
    graded = write(tiny, task(), prompt=prompt, temperature=0)
    same(graded, write(adapter, task(), temperature=0, batch_size=1))
    assert graded.tokens != write(tiny, task(), temperature=0).tokens
    first = adapter.encode(task()[0].prompt)
    assert graded.provenance["prompt"] == prompt.digest
    read = torch.tensor([[first[0], *adapter.words_before, *first[1:], *adapter.words_after]])
    at = torch.tensor([[read.shape[1] - 1]])
    logits = adapter.forward(
        read, torch.ones_like(read, dtype=torch.bool), readers={}, logits_at=at
    )
    assert logits is not None
    assert graded.tokens[0][0] == int(logits[0, 0].argmax())


def test_a_chat_is_read_through_its_template(tiny: Any) -> None:
    graded = write(tiny, task(), chat=True, temperature=0)
    adapter = as_adapter(tiny)
    read = torch.tensor([adapter.in_chat(True).encode(task()[2].prompt)])
    at = torch.tensor([[read.shape[1] - 1]])
    logits = adapter.forward(
        read, torch.ones_like(read, dtype=torch.bool), readers={}, logits_at=at
    )
    assert logits is not None
    assert graded.tokens[2][0] == int(logits[0, 0].argmax())


def test_draws_follow_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = torch.tensor([0.5, 0.3, 0.15, 0.05]).double().log()
    chance = (torch.arange(2000).double() + 0.5) / 2000
    rows = spread.expand(2000, 4)

    def shares(**options: float) -> list[float]:
        found = choose(rows, chance, **{"temperature": 1.0, "top_p": 1.0, **options})
        return [round(float((found == token).double().mean()), 3) for token in range(4)]

    assert shares() == [0.5, 0.3, 0.15, 0.05]
    assert shares(top_p=0.79) == [0.625, 0.375, 0, 0]  # the first two reach it
    assert shares(top_p=0.81) == [0.526, 0.316, 0.158, 0]
    assert shares(top_p=0.01) == [1, 0, 0, 0]
    for likeliest in (1, 2, 3):  # too few looked at first: all are
        monkeypatch.setattr(MODULE, "LIKELIEST", likeliest)
        assert shares(top_p=0.81) == [0.526, 0.316, 0.158, 0]
    hot = spread.div(0.5).softmax(-1)
    assert shares(temperature=0.5) == pytest.approx(hot.tolist(), abs=1e-3)
    assert shares(temperature=0.0) == [1, 0, 0, 0]
    last = choose(spread[None], torch.tensor([1 - 2**-53]).double(), temperature=1, top_p=0.9)
    assert int(last) == 2  # never a token that was cut off


def test_each_example_has_its_own_random_numbers() -> None:
    assert torch.equal(chances("a", 4, seed=0), chances("a", 9, seed=0)[:4])
    assert not torch.equal(chances("a", 4, seed=0), chances("b", 4, seed=0))
    assert not torch.equal(chances("a", 4, seed=0), chances("a", 4, seed=1))
    many = torch.cat([chances(str(i), 50, seed=0) for i in range(100)])
    assert abs(float(many.mean()) - 0.5) < 0.02


def test_an_interrupted_writing_goes_on_where_it_stopped(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = write(tiny, task(), batch_size=2, graders=long)
    honest, batches = Continuer.write, []

    def counted(self: Continuer, batch: Any) -> Any:
        batches.append([item.id for item in batch])
        if len(batches) == 3:
            raise KeyboardInterrupt
        return honest(self, batch)

    monkeypatch.setattr(Continuer, "write", counted)
    folder = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        write(tiny, task(), batch_size=2, checkpoint=folder)
    with pytest.raises(LensSkillsError, match=r"belongs to another pass.*seed"):
        write(tiny, task(), batch_size=2, checkpoint=folder, seed=5)
    found = write(tiny, task(), batch_size=3, checkpoint=folder, graders=long)
    assert sum(len(batch) for batch in batches[3:]) == 3  # four were written before
    same(found, wanted)
    torch.testing.assert_close(found.grades["long"], wanted.grades["long"])
    assert not folder.exists()


def test_texts_are_kept_while_they_are_graded(tiny: Any, tmp_path: Path) -> None:
    def stops(text: str, example: Example) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tiny, task(), checkpoint=tmp_path / "kept", graders=stops)
    assert list((tmp_path / "kept").glob("state-*"))


def test_a_grader_that_fails_costs_its_own_grades_only(tiny: Any) -> None:
    def fussy(text: str, example: Example) -> Any:
        return {
            "e1": {"odd": math.nan, "fine": 1},
            "e2": {"odd": "often", "fine": None},
            "e3": 7,
        }.get(example.id) or ({"fine": 1, "odd": True} if example.id != "e4" else {}["gone"])

    graded = write(tiny, task(), graders=[long, fussy])
    assert not graded.grades["long"].isnan().any()
    fine = graded.by_grader["fussy"]["fine"]
    assert fine.isnan().tolist() == [False, False, True, True, True, False, False]
    reasons = {problem.id: problem.reason for problem in graded.problems}
    assert {problem.grader for problem in graded.problems} == {"fussy"}
    assert reasons["e1"] == "it gave nan for 'odd'"
    assert reasons["e2"] == "it gave 'often' for 'odd'; it gave None for 'fine'"
    assert "returned 7" in reasons["e3"]
    assert reasons["e4"] == "KeyError: 'gone'"
    # Two graders of one skill: the mean of those that gave one.
    expected = (graded.by_grader["long"]["odd"][0] + graded.by_grader["fussy"]["odd"][0]) / 2
    assert graded.grades["odd"][0] == expected
    assert graded.grades["odd"][1] == graded.by_grader["long"]["odd"][1]
    assert "4 problems, the first: fussy on 'e1'" in repr(graded)
    task_of_fine = graded.task("fine")
    assert [example.id for example in task_of_fine] == ["e0", "e1", "e5", "e6"]
    assert "3 left out" in task_of_fine.split_name


def test_grading_again_fills_what_was_missing_and_loses_nothing(tiny: Any) -> None:
    def half(text: str, example: Example) -> dict[str, float]:
        if example.id < "e3":
            raise ValueError("not now")
        return {"skill": 1}

    graded = write(tiny, task(), graders={"mine": half})
    assert len(graded.problems) == 3

    def other_half(text: str, example: Example) -> dict[str, float]:
        return {"skill": 0} if example.id < "e3" else {}

    again = grade(graded, {"mine": other_half})
    assert again.problems == ()
    assert again.grades["skill"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert len(graded.problems) == 3  # the first one is as it was


def test_the_task_carries_grades_and_confidence(tiny: Any) -> None:
    graded = write(tiny, task(), graders=long)
    found = graded.task()
    assert [e.prompt for e in found] == [e.prompt for e in task()]
    assert [e.group for e in found] == [e.group for e in task()]
    assert found.column("long").tolist() == graded.grades["long"].tolist()
    assert found.column("asked even").tolist() == task().column("even").tolist()
    assert found.column("topic").tolist() == task().column("topic").tolist()
    assert found.column("mean_entropy").tolist() == graded.mean_entropy.tolist()
    assert found.column("copied").tolist() == list(graded.copied)
    assert found.column("n_tokens").tolist() == [len(tokens) for tokens in graded.tokens]
    assert graded.task("odd").column_names[0] == "odd"
    with_text = graded.task("odd", written=True)
    assert with_text[0].prompt == task()[0].prompt + graded.texts[0]
    with pytest.raises(LensSkillsError, match="no grades of 'short'"):
        graded.task("short")


def test_what_is_copied_from_the_prompt_is_told() -> None:
    prompt = "Example: The bees buzz and the gate creaks. Write."
    texts = ["The bees buzz — and the gate!", "The bees buzz loudly and the gate shuts.", "Bees."]
    written = [Written(text, [1], True, [0.0], [0.0]) for text in texts]
    graded = Graded.of([Example(id=t, prompt=prompt) for t in texts], written, {})
    assert graded.copied == (1.0, 0.0, 0.0)
    assert graded.frame()["copied"].tolist() == [1, 0, 0]
    assert "33% copied" in " ".join(repr(graded).split())


def test_scored_before_the_text_is_written(tiny: Any) -> None:
    prompt = soft(tiny)
    graded = write(tiny, task(20), prompt=prompt, graders=long)
    metrics = ["label:long", "covariate:mean_log_probability"]
    scores = score(
        tiny, graded.task(), metrics=metrics, prompt=prompt, n_permutations=0, n_controls=0,
        n_rotations=0,
    )  # fmt: skip
    assert scores.positions == ("-3", "-2", "-1")
    assert {"long" in name or "mean_log_probability" in name for name in scores.metrics} == {True}


def plain_mean(model: Any, prompt: SoftPrompt | None, graded: Graded, chat: bool) -> torch.Tensor:
    """Text by text, without padding: the mean over the written tokens, in one pass each."""
    adapter = with_soft_prompt(model, prompt, chat)
    rows = []
    for example, written in zip(graded.examples, graded.tokens, strict=True):
        tokens = adapter.encode(example.prompt)
        before = [*tokens[:1], *adapter.words_before, *tokens[1:], *adapter.words_after]
        read = torch.tensor([[*before, *written]])
        seen: dict[int, torch.Tensor] = {}
        readers = {
            f"blocks.{layer}.mlp.hook_post": lambda a, layer=layer, seen=seen: seen.__setitem__(
                layer, a[0]
            )
            for layer in range(adapter.n_layers)
        }
        adapter.forward(
            read, torch.ones_like(read, dtype=torch.bool), readers=readers, logits_at=None
        )
        rows.append(torch.stack([seen[i][len(before) :].mean(0) for i in range(adapter.n_layers)]))
    return torch.stack(rows)


@pytest.mark.parametrize(("with_soft", "chat"), [(False, False), (True, False), (True, True)])
def test_the_very_tokens_are_read_again(
    tiny: Any, tmp_path: Path, with_soft: bool, chat: bool
) -> None:
    prompt = soft(tiny) if with_soft else None
    graded = write(tiny, task(), prompt=prompt, chat=chat, graders=long)
    with config(batch_size=3):
        table = capture_text(tiny, graded, tmp_path / "table", prompt=prompt)
    found = table.activations()
    torch.testing.assert_close(found, plain_mean(tiny, prompt, graded, chat), atol=1e-4, rtol=1e-4)
    with pytest.raises(LensSkillsError, match="were written by"):
        capture_text(tiny, graded, tmp_path / "other", prompt=soft(tiny, 0))


def test_a_table_of_texts_is_scored_like_a_model(tiny: Any, tmp_path: Path) -> None:
    graded = write(tiny, task(20), graders=long)
    table = capture_text(tiny, graded, tmp_path / "table")
    options: dict[str, Any] = {
        "metrics": {"long": "label:long"}, "n_permutations": 19, "n_controls": 0, "n_rotations": 0,
    }  # fmt: skip
    scores = score(table, graded.task("long"), position="mean", **options)
    x = table.activations()[:, 2, 5]
    r = float(torch.corrcoef(torch.stack([x, graded.grades["long"].float()]))[0, 1])
    frame = scores["long"].frame()
    found = frame[(frame.layer == 2) & (frame.neuron == 5)]["r"].item()
    assert found == pytest.approx(r, abs=1e-5)


def test_prompts_that_hold_their_texts_are_read_there(tiny: Any, tmp_path: Path) -> None:
    from lens_skills.activations import span

    graded = write(tiny, task(), temperature=0, graders=long)
    at = span(column="text", take="mean")
    with_text = graded.task(written=True)
    with config(batch_size=1):
        batches = list(stream(tiny, with_text, position=at))
    rows = {int(batch.index): batch.activations[0] for batch in batches}
    wanted = plain_mean(tiny, None, graded, False)
    adapter = as_adapter(tiny)
    for place, example in enumerate(with_text):
        # As text, tokens may be cut otherwise; where they are not, it is the very same.
        exact = [*adapter.encode(graded.examples[place].prompt), *graded.tokens[place]]
        if adapter.encode(example.prompt) == exact:
            torch.testing.assert_close(rows[place], wanted[place], atol=1e-4, rtol=1e-4)
    assert capture(tiny, with_text, tmp_path / "t", position="last").layers == (0, 1, 2, 3)


@pytest.mark.parametrize("how", ["chat", "soft"])
def test_text_alone_cannot_repeat_a_chat_or_a_soft_prompt(tiny: Any, how: str) -> None:
    options: dict[str, Any] = {"chat": True} if how == "chat" else {"prompt": soft(tiny)}
    graded = write(tiny, task(), graders=long, **options)
    with pytest.raises(LensSkillsError, match="capture_text"):
        graded.task(written=True)


def test_saved_and_loaded_it_is_the_same(tiny: Any, tmp_path: Path) -> None:
    def breaks(text: str, example: Example) -> dict[str, float]:
        if example.id == "e2":
            raise ValueError("é\n")
        return {"n_tokens": 1}

    graded = write(tiny, task(), graders=[long, breaks])
    again = Graded.load(graded.save(tmp_path / "graded"))
    same(again, graded)
    assert again.frame().equals(graded.frame())
    assert repr(again) == repr(graded)
    assert again.examples == graded.examples
    assert again.problems == graded.problems
    assert again.task("long").fingerprint() == graded.task("long").fingerprint()
    assert list(graded.frame())[-1] == "grade:n_tokens"  # a skill called like a column
    (tmp_path / "graded" / "result.json").write_text('{"kind": "Graded", "format": 2}')
    with pytest.raises(LensSkillsError, match=r"the Graded in .* is damaged"):
        Graded.load(tmp_path / "graded")
    with pytest.raises(LensSkillsError, match="no saved Graded"):
        Graded.load(tmp_path / "nothing")


def test_the_summary_counts_where_a_skill_was_asked_for(tiny: Any) -> None:
    graded = write(tiny, task(), graders=lambda text, example: {"even": example.labels["even"]})
    (row,) = graded.summary().to_dict("records")
    assert (row["asked"], row["mean_asked"], row["mean_not_asked"]) == (3, 1.0, 0.0)
    assert "even: 1.00 of 3 asked · 0.00 elsewhere" in repr(graded)


def test_what_cannot_be_is_refused_before_anything_is_written(
    tiny_bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "Continuer", None)
    examples = task()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 250}, "at most 256"),
        ({"graders": [7]}, "a grader is a function"),
        ({"graders": [long, long]}, "two graders are called 'long'"),
    ]
    for options, message in cases:
        with pytest.raises(LensSkillsError, match=message):
            write(tiny_bridge, examples, **options)
    twice = [examples[0], examples[0]]
    with pytest.raises(LensSkillsError, match="'e0' is used twice"):
        write(tiny_bridge, twice)
    with pytest.raises(LensSkillsError, match="no examples"):
        write(tiny_bridge, [])


def test_logits_that_are_not_finite_name_the_example(tiny: Any) -> None:
    point = tiny.hook_dict["blocks.1.mlp.hook_post"]
    point.add_hook(lambda activation, hook: activation * math.nan)
    try:
        with pytest.raises(LensSkillsError, match="not finite for example 'e5'"):
            write(tiny, task())  # the shortest prompt stands in the first batch, and first in it
    finally:
        for handle in list(point.fwd_hooks):
            handle.hook.remove()
        point.fwd_hooks.clear()


def test_the_model_is_left_as_it_was(tiny: Any) -> None:
    def weights() -> str:
        parts = [p.detach().numpy().tobytes() for p in as_adapter(tiny)._modules().parameters()]  # type: ignore[attr-defined]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    before = weights()
    write(tiny, task(), prompt=soft(tiny), temperature=0.8)
    assert weights() == before
