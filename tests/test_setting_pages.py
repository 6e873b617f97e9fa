"""The pages of the three settings on a model asked for: sizes, parts, refusals, a smoke run."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import lens_skills as ls

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks" / "settings"))
pages: Any = import_module("page")
room: Any = import_module("room")
differences: Any = import_module("differences")
cells: Any = import_module("arithmetic_cells")
arithmetic: Any = import_module("arithmetic")
hans: Any = import_module("hans")
skill_mix: Any = import_module("skill_mix")
SMALL = "arithmetic-small"


@pytest.fixture(autouse=True)
def nothing_read_back() -> None:
    pages.READ_BACK.clear()


@pytest.fixture(scope="module")
def small() -> Any:
    return ls.load_model(SMALL)


def given_to(monkeypatch: pytest.MonkeyPatch, *words: str, **more: Any) -> argparse.Namespace:
    monkeypatch.setattr("sys.argv", ["arithmetic.py", *words])
    return pages.asked("", {"rows": 3}, rows={"type": int, "default": 40}, **more)


def test_a_model_asked_for_has_smaller_sizes_and_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert given_to(monkeypatch).rows == 40
    assert given_to(monkeypatch, "--model", SMALL).rows == 3
    assert given_to(monkeypatch, "--model", SMALL, "--rows", "7").rows == 7
    given = given_to(monkeypatch, "--model", SMALL, "--out", str(tmp_path))
    assert given.runs == pages.RUNS / "arithmetic_small"
    page = pages.Page("arithmetic", "A", command="python a.py", asked=given)
    assert page.write() == tmp_path / "arithmetic_small" / "arithmetic.md"
    text = (tmp_path / "arithmetic_small" / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# What was found in the three settings: arithmetic-small\n")
    assert "`python a.py --model arithmetic-small`" in text
    own = pages.Page(
        "arithmetic", "A", command="x", asked=given_to(monkeypatch, "--out", str(tmp_path))
    )
    assert own.write() == tmp_path / "arithmetic.md"
    assert (tmp_path / "README.md").read_text(encoding="utf-8").startswith(pages.INTRODUCTION)


def test_what_is_kept_names_the_public_model_and_no_place_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tiny-q4.gguf"
    file.touch()
    words = ("--model", str(file), "--save", "--out", str(tmp_path))
    assert pages.public_name(given_to(monkeypatch, *words)) == "tiny-q4.gguf"
    given = given_to(monkeypatch, *words, "--name", "Org/Tiny")
    kept = tmp_path / "kept.json"

    def save(part: str, figures: Any) -> Path:
        kept.write_text(json.dumps({"command": f"python a.py {part} {file}"} | figures))
        return kept

    monkeypatch.setattr(pages, "save", save)
    page = pages.Page("hans", "H", command="python a.py --hans F", asked=given)
    page.figures["right"] = 0.5
    page.write()
    said = json.loads(kept.read_text())
    assert said["command"] == "python a.py --hans F --model Org/Tiny"
    assert said["right"] == 0.5
    texts = [path.read_text() for path in (tmp_path / "tiny").glob("*.md")]
    assert texts
    assert not any(str(tmp_path) in text for text in texts)
    assert any("of which a 4-bit GGUF file was run" in text for text in texts)


def test_what_differs_is_what_both_pages_have(tmp_path: Path) -> None:
    (tmp_path / "before.json").write_text(json.dumps({"command": "c", "a": 1, "b": 0.25, "c": 3}))
    names = {"b": "second", "a": "first", "c": "only there", "d": "only here"}
    frame = differences.differing("before", {"a": 2, "b": 0.5, "d": 1}, names, "M", folder=tmp_path)
    assert frame.to_dict("list") == {
        "number": ["second", "first"], "SmolLM2": [0.25, 1.0], "M": [0.5, 2.0]
    }  # fmt: skip
    assert differences.differing("none", {"a": 2}, names, "M", folder=tmp_path).empty


def test_a_number_is_found_in_a_file_named_after_a_model_with_dots() -> None:
    sys.path.append(str(ROOT / "benchmarks"))
    pages_of_docs: Any = import_module("render_docs")
    text = "<!--= settings_qwen2.5-0.5b.right .2f -->?<!--/-->"
    found = pages_of_docs.render(text, {"settings_qwen2.5-0.5b": {"right": 0.25}})
    assert found == "<!--= settings_qwen2.5-0.5b.right .2f -->0.25<!--/-->"


def test_a_model_larger_than_the_memory_is_refused_unopened(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tiny_hf: tuple[Any, Any]
) -> None:
    count = room.parameters(str(tiny_folder))
    held = {p.data_ptr(): p.numel() for p in tiny_hf[0].parameters()}
    assert count == sum(held.values())
    room.refuse_too_large(str(tiny_folder))
    room.refuse_too_large(None)
    monkeypatch.setattr(room, "free_bytes", lambda: 4 * count - 1)
    with pytest.raises(SystemExit, match=f"holds {count:,} numbers.*Take a smaller model"):
        room.refuse_too_large(str(tiny_folder))
    monkeypatch.setattr(room, "free_bytes", lambda: 4 * count)
    room.refuse_too_large(str(tiny_folder))


def test_a_pass_larger_than_the_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, small: Any
) -> None:
    task = ls.tasks.arithmetic("+", n=16)
    told = room.told_beforehand("score", small, task, metrics="confidence", n_permutations=19)
    assert "minutes and" in told
    monkeypatch.setattr(room, "free_bytes", lambda: 10)
    with pytest.raises(SystemExit, match="Ask for fewer examples"):
        room.told_beforehand("score", small, task, metrics="confidence", n_permutations=19)


def sizes_of(**more: Any) -> argparse.Namespace:
    sizes = {"bigbench": None, "digits": 2, "budget": 4, "explore": 12, "confirm": 12,
             "intervene": 12, "tested": 12, "learn": 12, "cell": 4, "others": 2}  # fmt: skip
    return argparse.Namespace(**sizes | more)


def test_no_pair_of_operands_is_in_two_parts(small: Any) -> None:
    problems = cells.Problems(small, sizes_of())
    parts = {name: {e.group for e in getattr(problems, name)}
             for name in ("explore", "confirm", "intervene", "tested", "learn")}  # fmt: skip
    assert all(parts.values())
    for name, groups in parts.items():
        for other, others in parts.items():
            assert name == other or not groups & others, (name, other)
    counts = pd.Series([(e.column("op"), e.column("digits")) for e in problems.explore])
    assert set(counts.value_counts()) == {2}
    tokens = [problems.tokens[e.id] for e in problems.intervene]
    assert all(answer[0] != foil[0] for answer, foil in tokens)


def test_answers_longer_than_the_budget_are_counted(small: Any) -> None:
    problems = cells.Problems(small, sizes_of(budget=2))
    long = [e for e in problems.real if e.column("op") in "+-*" and len(e.answer) > 2]
    assert problems.too_long == len(long)
    assert all(len(e.answer) <= 2 for e in problems.explore)
    assert f"{problems.too_long:,} of {problems.asked:,} are left out" in problems.said()


def test_the_first_token_over_the_foil_is_read_off_the_logits(small: Any) -> None:
    problems = cells.Problems(small, sizes_of())
    few = list(problems.intervene)[:3]
    logits = torch.randn(3, small.cfg.d_vocab, generator=torch.Generator().manual_seed(0))
    found = problems.first_over_foil(logits, few)
    for row, example in enumerate(few):
        answer, foil = (
            small.tokenizer.encode(text, add_special_tokens=False)[0]
            for text in (example.answer, example.foil)
        )
        assert found[row] == pytest.approx(float(logits[row, answer] - logits[row, foil]))


def test_shots_are_answered_and_of_pairs_that_are_not_asked() -> None:
    task = cells.spread(ls.tasks.arithmetic("+-*/", digits=1), 8)
    shown = cells.with_shots(task, sizes_of(digits=1))
    assert [e.answer for e in shown] == [e.answer for e in task]
    before = {e.prompt.removesuffix(bare.prompt) for e, bare in zip(shown, task, strict=True)}
    assert len(before) == 1
    text = before.pop()
    assert text.count("A: ") == cells.SHOTS
    assert not any(e.prompt.strip() in text for e in task)


def test_a_cell_is_a_skill_where_its_interval_is_above_the_rule(small: Any) -> None:
    able = cells.able_in(small, ls.tasks.few(ls.tasks.arithmetic("+", digits=2), 40, seed=0))
    assert able.loc[0, "whole"] > 0.9
    assert able.loc[0, "whole_low"] > able.loc[0, "chance"]
    cannot = cells.able_in(small, ls.tasks.few(ls.tasks.arithmetic("/", digits=2), 40, seed=0))
    assert cannot.loc[0, "whole_low"] <= cannot.loc[0, "chance"]
    assert (cannot["whole_high"] >= cannot["whole"]).all()


@pytest.mark.slow
def test_the_command_runs_on_a_small_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Any
) -> None:
    """The section up to the last token, on a few problems of one digit."""
    monkeypatch.setattr(arithmetic, "opened", lambda name: small)
    asked: Any = import_module("arithmetic_asked")
    monkeypatch.setattr(asked, "told_beforehand", lambda *_, **__: "told nothing")
    monkeypatch.setattr(asked, "AT", {"last": ("confidence",), "prompt": ()})
    drawn: list[str] = []
    monkeypatch.setattr(pages, "keep", lambda _, path: drawn.append(path.name) or path)
    words = [
        "arithmetic.py", "--model", SMALL, "--quick", "--digits", "1", "--out", str(tmp_path),
        "--runs", str(tmp_path / "runs"), "--until", "last",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", words)
    arithmetic.main()
    folder = tmp_path / "arithmetic_small"
    text = (folder / "arithmetic.md").read_text(encoding="utf-8")
    assert "no result" in text
    for name in ("abilities", "prompts", "gates_last"):
        assert not pd.read_csv(folder / f"arithmetic_{name}.csv").empty
    for said in ("What arithmetic-small can do", "Soft prompts", "last token", "Together"):
        assert said in text
    assert "**Not run** (`--until last`): neurons and verdicts at the prompt vectors." in text
    assert "arithmetic_forest_last" in drawn


def test_what_was_made_is_read_back_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a" / "table.csv"
    made = pages.kept_table(path, lambda: pd.DataFrame({"x": [1, 2]}))
    assert pages.READ_BACK == []
    again = pages.kept_table(path, lambda: pytest.fail("made anew"))
    assert again.equals(made)
    assert [path] == pages.READ_BACK
    pages._clock(path).write_text("90.0")
    assert pages.minutes(path, tmp_path / "never") == 1.5
