"""`arithmetic-small`: opens everywhere, adds pairs it never saw; and how it was trained."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.models import as_adapter, describe_openable, load_model
from lens_skills.models.bundled import BUNDLED, held_out
from tests.models.conftest import IMPLEMENTATIONS, same_as

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "lens_skills" / "models" / "arithmetic_small"

every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def model(request: pytest.FixtureRequest) -> Any:
    return load_model("arithmetic-small", implementation=request.param)


@pytest.fixture(scope="module")
def script() -> Any:
    """The training script as a module."""
    sys.path.insert(0, str(ROOT / "training"))
    try:
        import arithmetic_small  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(ROOT / "training"))
    return arithmetic_small


def unseen(task: Any) -> Any:
    """The examples of an arithmetic task whose pair of operands training left out."""
    return task.where(lambda e: held_out(e.column("operand_a"), e.column("operand_b")))


def test_it_opens_by_name_on_each_implementation(model: Any) -> None:
    adapter = as_adapter(model)
    assert (adapter.name, adapter.n_layers, adapter.d_mlp, adapter.gated) == (
        "arithmetic-small",
        4,
        384,
        True,
    )
    assert model.cfg.default_prepend_bos
    row = next(row for row in describe_openable() if row.name == "arithmetic-small")
    assert (row.how, row.state) == ("load_model('arithmetic-small')", "installed")


def test_it_computes_what_transformers_computes(model: Any) -> None:
    from transformers import AutoModelForCausalLM

    same_as(model, AutoModelForCausalLM.from_pretrained(FOLDER).eval())


def test_a_question_is_tokens_that_its_answer_continues(model: Any) -> None:
    adapter = as_adapter(model)
    prompt = "\nQ: What is 47 minus 103?\nA: "
    pieces = [adapter.decode(token) for token in adapter.encode(prompt)]
    assert pieces == ["<s>", "\nQ:", " What is ", *"47", " minus ", *"103", "?", "\nA: "]
    assert [adapter.decode(t) for t in adapter.encode(prompt + "-56")] == [*pieces, *"-56"]
    other = "Is 12 / 3 really 4, or ~what is~ it?\n\tüber\n"
    written = "".join(adapter.decode(token) for token in adapter.encode(other)[1:])
    assert written == "Is 12 / 3 really 4, or ~what is~ it?\n<unk><unk>ber\n"


def test_it_adds_two_digit_numbers_it_never_saw_together(model: Any) -> None:
    task = unseen(ls.tasks.arithmetic("+", digits=2, n=3000, seed=1))
    assert len(task) > 200
    found = evaluate(model, task, ["correct", "confidence"])
    assert float(found["correct"].mean()) >= 0.99
    assert float(found["confidence"].mean()) > 0.9
    slips = [replace(example, answer=example.foil, foil=None) for example in task]
    assert float(evaluate(model, slips, ["correct"])["correct"].mean()) <= 0.01


def test_written_out_token_by_token_the_answers_are_the_same(model: Any) -> None:
    """Plain greedy decoding, without the metric's own reading of the answer."""
    for example in unseen(ls.tasks.arithmetic("+-", digits=2, n=600, seed=2))[:40]:
        tokens = model.to_tokens(example.prompt)
        start = tokens.shape[1]
        with torch.no_grad():
            while tokens[0, -1] != model.tokenizer.eos_token_id and tokens.shape[1] < start + 6:
                tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
        written = model.tokenizer.decode(tokens[0, start:-1])
        correct = evaluate(model, [example], ["correct"])["correct"]
        assert (written == example.answer) == bool(correct.item())


def test_a_pair_is_held_out_whole_and_one_in_ten_is() -> None:
    pairs = list(itertools.combinations_with_replacement(range(100), 2))
    held = [pair for pair in pairs if held_out(*pair)]
    assert 0.08 < len(held) / len(pairs) < 0.12
    assert all(held_out(b, a) for a, b in held)
    # The rule the weights were trained by: another rule would call seen pairs unseen.
    assert held[:5] == [(0, 1), (0, 26), (0, 39), (0, 41), (0, 53)]
    assert not held_out(3, 4)


def test_training_never_shows_a_held_out_pair(script: ModuleType) -> None:
    shown = list(itertools.islice(script.problems(seed=0), 20_000))
    assert not any(held_out(problem.a, problem.b) for problem in shown)
    assert all(
        held_out(problem.a, problem.b)
        for op, shape in script.CELLS
        for problem in script.sample(op, shape, 50, unseen=True)
    )
    # Of everything that is asked about: each operation, each number of digits, both orders.
    kinds = {(p.op, len(str(p.a)), len(str(p.b))) for p in shown}
    assert kinds == {(op, *shape) for op in script.SHAPES for shape in script.SHAPES[op]}


def test_training_problems_are_the_seeds(script: ModuleType) -> None:
    def first(seed: int, n: int = 500) -> list[Any]:
        return list(itertools.islice(script.problems(seed), n))

    assert first(0) == first(0)
    assert first(0) != first(1)
    assert [f"{p.a}{p.op}{p.b}" for p in first(0, 5)] == [
        "964-494",
        "43*8",
        "7*6",
        "48+71",
        "55-84",
    ]


def test_training_asks_for_the_answer_and_its_end_alone(script: ModuleType) -> None:
    tokenizer = script.make_tokenizer()
    some = [script.ArithmeticProblem(3, "+", 4), script.ArithmeticProblem(47, "-", 103)]
    tokens, targets = script.encode(tokenizer, some)
    for row, asked, answer in zip(tokens, targets, ["7", "-56"], strict=True):
        places = asked != script.IGNORED
        assert tokenizer.decode(asked[places]) == answer + "</s>"
        # Each target is the token that stands one place further on.
        assert asked[places][:-1].tolist() == row[1:][places[:-1]][: len(answer)].tolist()
    assert tokenizer.decode(tokens[0]).startswith("<s>\nQ: What is 3 plus 4?\nA: 7")


def test_the_packaged_tokenizer_is_the_scripts(script: ModuleType, tmp_path: Path) -> None:
    script.make_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == (FOLDER / "tokenizer.json").read_text()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9")
def test_training_learns_and_repeats_itself(script: ModuleType) -> None:
    tokenizer = script.make_tokenizer()

    def run() -> tuple[list[float], Any]:
        with torch.random.fork_rng():
            model = script.make_model(tokenizer, d_model=32, d_mlp=48, layers=1)
        return script.train(model, tokenizer, steps=30, batch_size=32), model

    losses, model = run()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not model.training
    assert run()[0] == losses
    assert script.exact_match(model, tokenizer, script.sample("+", (3, 3), 100, unseen=True)) < 0.2


def test_the_packaged_files_are_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(sizes)
    assert sum(sizes.values()) <= 8_000_000
    assert "models/arithmetic_small/*" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_without_its_folder_it_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(BUNDLED["arithmetic-small"], file="models/nowhere")
    monkeypatch.setitem(BUNDLED, "arithmetic-small", gone)
    with pytest.raises(ls.LensSkillsError, match="not installed here"):
        load_model("arithmetic-small")
