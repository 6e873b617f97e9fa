"""bigbench: the real arithmetic files, and small hand-written tasks of every shape."""

import json
from pathlib import Path
from typing import Any

import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError

NAMES = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}

CHOICE = {
    "name": "colours",
    "preferred_score": "multiple_choice_grade",
    "examples": [
        {"input": "Grass is", "target_scores": {"red": 0, "green": 1, "blue": 0}},
        {"input": "Snow is", "target_scores": {"black": 0.0, "white": 1.0}},
        {"input": "Snow is", "target_scores": {"white": 0.5, "grey": 0.25}},
    ],
}
EXACT = {
    "preferred_score": "exact_str_match",
    "examples": [
        {"input": "Capital of France?", "target": "Paris"},
        {"input": "A vowel?", "target": ["e"], "target_scores": {"a": 0, "e": 1, "x": 0}},
    ],
}


def written(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.mark.parametrize("op", NAMES)
def test_one_digit_is_the_original_example_by_example(shared_data: Path, op: str) -> None:
    real = tasks.bigbench(shared_data / "bigbench_arithmetic" / f"1_digit_{NAMES[op]}.json")
    ours = tasks.arithmetic(op)
    assert len(real) == len(ours)
    for theirs, example in zip(real, ours, strict=True):
        # The space at the end of the prompt decides the first token of the answer: it is theirs.
        assert theirs.prompt == example.prompt
        assert theirs.prompt.endswith("?\nA: ")
        for field in ("answer", "foil", "labels", "group", "kind"):
            assert getattr(theirs, field) == getattr(example, field)
        assert theirs.covariates.items() >= example.covariates.items()


@pytest.fixture(scope="module")
def whole(shared_data: Path) -> tasks.Task:
    return tasks.bigbench(shared_data / "bigbench_arithmetic")


def test_the_whole_folder(whole: tasks.Task) -> None:
    task = whole
    assert len(task) == 15_023
    assert len(set(task.column("subtask"))) == 20
    assert set(task.column("op")) == set(NAMES)
    for e in task:
        number, name = str(e.covariates["subtask"]).split("_digit_")
        assert e.covariates["digits"] == int(number)
        assert NAMES[str(e.labels["op"])] == name
        assert e.options
        assert "banana" not in e.prompt


def test_generated_problems_are_worded_and_sized_as_the_originals(shared_data: Path) -> None:
    for op, name in NAMES.items():
        for digits in (2, 3):
            file = shared_data / "bigbench_arithmetic" / f"{digits}_digit_{name}.json"
            real, ours = tasks.bigbench(file), tasks.arithmetic(op, digits)
            assert len(real) == len(ours)
            texts = {"".join(c for c in e.prompt if not c.isdigit()) for e in (*real, *ours)}
            assert len(texts) == 1
            for column in ("operand_a", "result_digits", "first_digit"):
                assert abs(real.column(column).mean() / ours.column(column).mean() - 1) < 0.25
            lengths = [
                sum(len(str(e.covariates["operand_b"])) for e in task) / len(task)
                for task in (real, ours)
            ]
            assert abs(lengths[0] - lengths[1]) < 0.25
            # What copying gets right is as rare, dividing by one or by itself included.
            for column in ("answer_is_operand", "same_operands"):
                assert abs(real.column(column).mean() - ours.column(column).mean()) < 0.08


def test_limit_draws_from_each_subtask(shared_data: Path, whole: tasks.Task) -> None:
    folder = shared_data / "bigbench_arithmetic"
    task = tasks.bigbench(folder, limit=7, seed=1)
    assert len(task) == 140
    assert task.fingerprint() == tasks.bigbench(folder, limit=7, seed=1).fingerprint()
    assert task.fingerprint() != tasks.bigbench(folder, limit=7, seed=2).fingerprint()
    assert {e.id for e in task} <= {e.id for e in whole}


def test_multiple_choice(tmp_path: Path) -> None:
    task = tasks.bigbench(written(tmp_path / "colours.json", CHOICE))
    assert task.name == "colours"
    first, second, third = task
    assert (
        first.prompt
        == "\nQ: Grass is" + "".join(f"\n  choice: {option}" for option in first.options) + "\nA: "
    )
    assert sorted(first.options) == ["blue", "green", "red"]
    assert (first.answer, first.foil) == ("green", None)
    assert (second.answer, second.foil) == ("white", "black")
    assert third.answer == "white"
    assert second.group == third.group != first.group  # the same input is never divided
    for e in task:
        assert e.answer is not None
        assert e.labels["answer_position"] == e.options.index(e.answer)
        assert e.covariates["n_options"] == len(e.options)
    orders = {
        e.options for seed in range(9) for e in tasks.bigbench(tmp_path / "colours.json", seed=seed)
    }
    assert len(orders) > 5


def test_exact_match_leaves_the_choices_out(tmp_path: Path) -> None:
    path = written(tmp_path / "exact.json", EXACT)
    task = tasks.bigbench(path)
    assert [e.prompt for e in task] == ["\nQ: Capital of France?\nA: ", "\nQ: A vowel?\nA: "]
    assert [e.answer for e in task] == ["Paris", "e"]
    assert task[1].options == ("a", "e", "x")
    assert "answer_position" not in {**task[1].covariates, **task[1].labels}
    assert "choice: x" in tasks.bigbench(path, choices=True)[1].prompt
    said = written(tmp_path / "said.json", {**EXACT, "append_choices_to_input": True})
    assert "choice: x" in tasks.bigbench(said)[1].prompt
    unsaid = written(tmp_path / "no.json", {**CHOICE, "append_choices_to_input": False})
    assert "choice" not in tasks.bigbench(unsaid)[0].prompt


def test_prefixes(tmp_path: Path) -> None:
    data = {
        **CHOICE,
        "task_prefix": "Colours.",
        "example_input_prefix": "\nThing: ",
        "example_output_prefix": "\nColour:",
        "choice_prefix": " | ",
    }
    first = tasks.bigbench(written(tmp_path / "a.json", data))[0]
    assert first.prompt == (f"Colours.\nThing: Grass is | {' | '.join(first.options)}\nColour:")
    empty = {**EXACT, "example_input_prefix": "", "example_output_prefix": ""}
    assert tasks.bigbench(written(tmp_path / "b.json", empty))[0].prompt == "Capital of France?"


def test_folders_of_subtasks(tmp_path: Path) -> None:
    written(tmp_path / "both" / "one" / "task.json", CHOICE)
    written(tmp_path / "both" / "two" / "task.json", EXACT)
    written(tmp_path / "both" / "results" / "scores.json", {"score": 1})
    task = tasks.bigbench(tmp_path / "both")
    assert task.name == "both"
    assert task.column("subtask").tolist() == ["one"] * 3 + ["two"] * 2
    single = tasks.bigbench(tmp_path / "both" / "one")
    assert single.name == "one"
    assert single.examples == task.examples[:3]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ('{"examples": [', "as JSON"),
        ([1, 2], "non-empty list 'examples'"),
        ({"name": "x"}, "non-empty list 'examples', and holds .'name'"),
        ({"examples": []}, "non-empty list"),
        ({"examples": [{"input": "a", "target": "b"}, {"target": "b"}]}, "example 1: .*'input'"),
        ({"examples": [{"input": "a"}]}, "example 0: .*'target'.*it has .'input'"),
        ({"examples": [{"input": "a", "target": 7}]}, "example 0: .*target 7"),
        ({"examples": [{"input": "a", "target": ""}]}, "example 0: .*target ''"),
        ({"examples": [{"input": "a", "target_scores": {}}]}, "example 0: 'target_scores'"),
        ({"examples": [{"input": "a", "target_scores": {"b": "1"}}]}, "'target_scores'"),
        *(
            ({"examples": [{"input": "a", "target_scores": scores}]}, "example 0: it has no one")
            for scores in (
                {"b": 0, "c": 0},
                {"b": float("nan"), "c": 1},
                {"b": 1, "c": 1},
                {"b": -1},
            )
        ),
        (
            {"examples": [{"input": "a", "target": "b", "target_scores": {"b": 1, "c": 1}}]},
            "example 0: the options .'b', 'c'. are all right",
        ),
        (
            {"examples": [{"input": "a", "target": "b", "target_scores": {"b": 0, "c": 1}}]},
            "example 0: the target 'b' has not the best",
        ),
        ('{"examples": [{"input": "a", "target_scores": {"b": 1, "b": 0}}]}', "'b' stands twice"),
        ({"examples": [{"input": "a", "target": "b", "context": 1}]}, "example 0: its 'context'"),
        ({**CHOICE, "task_prefix": ["x"]}, "'task_prefix' is"),
        ({**CHOICE, "append_choices_to_input": "no"}, "not true or false"),
        ({**CHOICE, "preferred_score": {"a": 1}}, "'preferred_score' is .* no name"),
        ("[" * 100_000, "nested too deeply"),
        (
            {"examples": [{"input": "a", "target": "c", "target_scores": {"b": 1}}]},
            "target 'c' is not one of the options",
        ),
    ],
)
def test_bad_files_are_named_with_the_example(tmp_path: Path, data: Any, complaint: str) -> None:
    path = written(tmp_path / "bad.json", data)
    with pytest.raises(LensSkillsError, match=f"bad.json.*{complaint}"):
        tasks.bigbench(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="no file or folder"):
        tasks.bigbench(tmp_path / "none.json")
    with pytest.raises(LensSkillsError, match="no JSON task"):
        tasks.bigbench(tmp_path)
    with pytest.raises(LensSkillsError, match="at least 1"):
        tasks.bigbench(tmp_path, limit=0)


def test_the_context_stands_before_the_question(tmp_path: Path) -> None:
    entry = {"context": "The cup is red.", "input": "What colour?", "target": "red"}
    task = tasks.bigbench(written(tmp_path / "a.json", {"examples": [entry]}))
    assert task[0].prompt == "\nQ: The cup is red.\nWhat colour?\nA: "


def test_keys_that_are_not_used_are_named(tmp_path: Path) -> None:
    entry = {"input": "x", "target": ["y", "z"], "passage": "p"}
    path = written(tmp_path / "a.json", {"examples": [entry], "preamble": "Read."})
    with pytest.warns(RuntimeWarning) as said:
        task = tasks.bigbench(path)
    assert task[0].answer == "y"
    words = [str(warning.message) for warning in said]
    assert "not used are examples[passage], preamble" in words[0]
    assert "1 of 1 examples have several right targets" in words[1]


@pytest.mark.parametrize("key", ["preferred_score", "preferred_metric", "metrics"])
def test_metrics_may_be_one_or_several(tmp_path: Path, key: str) -> None:
    data = {"examples": CHOICE["examples"]}
    for names, listed in [("exact_str_match", False), (["exact_str_match"], False),
                          (["exact_str_match", "multiple_choice_grade"], True)]:  # fmt: skip
        task = tasks.bigbench(written(tmp_path / "a.json", {**data, key: names}))
        assert ("choice:" in task[0].prompt) == listed


def test_the_right_option_is_a_label(tmp_path: Path) -> None:
    rows = [{"input": f"q{n}", "target_scores": {"valid": n % 2, "invalid": 1 - n % 2}}
            for n in range(4)]  # fmt: skip
    task = tasks.bigbench(written(tmp_path / "a.json", {"examples": rows}))
    assert task.column("answer").tolist() == ["invalid", "valid"] * 2
    assert [e.options[int(e.labels["answer_position"])] for e in task] == [e.answer for e in task]


def test_join_moves_the_space_to_the_answers(tmp_path: Path) -> None:
    data = {**CHOICE, "example_output_prefix": "\nA:\n"}
    first = tasks.bigbench(written(tmp_path / "a.json", data), join=" ")[0]
    assert first.prompt.endswith("\nA:")
    assert first.answer == " green"
    assert set(first.options) == {" red", " green", " blue"}
