"""Python's own code as a task: its labels against Python's tokenizer, and code that is none."""

import io
import re
import tokenize
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import lens_skills as ls
from lens_skills import tasks
from lens_skills.errors import LensSkillsError

SOURCE = """import json as js

LIMIT = 12


class Reader:
    kind = "a b c"

    def read(self, path, sep=","):
        total = 0
        for line in open(path):
            total += len(js.loads(line, strict=LIMIT)) * 3
        return self.total if total > 4 else kind
"""


@pytest.fixture(scope="module")
def task() -> ls.Task:
    return tasks.code(100, n_modules=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(SOURCE)
    return tmp_path


def test_the_library_gives_every_class_and_the_same_each_time(task: ls.Task) -> None:
    assert set(Counter(task.column("token")).values()) == {20}
    assert len(task.groups) == 10
    assert task.fingerprint() == tasks.code(100, n_modules=10).fingerprint()
    assert task.fingerprint() != tasks.code(100, 1, n_modules=10).fingerprint()
    assert "standard library of Python 3." in task.split_name
    assert len({e.prompt for e in task}) == 100
    assert max(len(e.prompt) for e in task) <= 200


def test_splits_keep_modules_whole(task: ls.Task) -> None:
    one, two = task.split(0.5, 0.5, seed=0)
    assert not set(one.groups) & set(two.groups)
    assert min(len(one.groups), len(two.groups)) > 0


def test_the_class_is_that_of_the_last_token_of_the_prompt(task: ls.Task) -> None:
    """Read again from the prompt alone, by the tokenizer, wherever it can read half a text."""
    read = 0
    for example in task.where(lambda e: e.labels["token"] in ("number", "name", "keyword")):
        text = example.covariates["text"]
        tokens = []
        try:
            for token in tokenize.generate_tokens(io.StringIO(example.prompt.lstrip()).readline):
                tokens.append(token)
        except (tokenize.TokenError, IndentationError):
            pass
        last = [t for t in tokens if t.string.strip()][-1]
        if last.string != text:
            continue
        read += 1
        wanted = tokenize.NUMBER if example.labels["token"] == "number" else tokenize.NAME
        assert last.type == wanted
    assert read > 30
    for example in task:
        assert example.prompt.endswith(str(example.covariates["text"]))
        assert (example.answer or "").strip()
        assert example.labels["in_string"] == (example.labels["token"] == "string")


def labels(task: ls.Task, before: str, text: str) -> dict[str, Any]:
    (found,) = [e for e in task if e.prompt.endswith(before + text)]
    assert found.covariates["text"] == text
    return dict(found.labels)


def test_labels_of_a_file_that_can_be_read_by_eye(folder: Path) -> None:
    task = tasks.code(500, folder=folder, context=400)
    assert task.groups == ("own.py",)
    limit = labels(task, "strict=", "LIMIT")
    assert limit == {
        "token": "name", "in_string": 0, "depth": 3, "brackets": 2, "in_function": 1, "defined": 1,
    }  # fmt: skip
    names = {
        ("import ", "json"): 0,  # bound as js
        ("len(", "js"): 1,
        ("js.", "loads"): 0,
        ("line, ", "strict"): 0,  # a keyword argument
        ("for ", "line"): 1,
        ("in ", "open"): 0,
        ("self.", "total"): 0,  # an attribute, though total is bound
        ("loads(", "line"): 1,
        ("def ", "read"): 1,
        ("(", "self"): 1,
    }
    for (before, text), wanted in names.items():
        assert labels(task, before, text)["defined"] == wanted, (before, text)
    # A word in a string is a string, whatever it looks like, and the literal's end is not asked.
    assert labels(task, '"a ', "b")["token"] == "string"
    assert not [e for e in task if e.prompt.endswith('"a b c')]
    assert labels(task, "import json ", "as")["token"] == "keyword"
    outside = labels(task, "LIMIT ", "=")
    assert (outside["token"], outside["depth"], outside["in_function"]) == ("operator", 0, 0)


def test_a_class_sees_its_names_and_its_functions_do_not(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "class A:\n    size = 3\n    twice = size * 2\n    def f(self): return size + 1\n"
    )
    task = tasks.code(100, folder=tmp_path)
    assert labels(task, "twice = ", "size")["defined"] == 1
    assert labels(task, "return ", "size")["defined"] == 0


def test_a_prompt_begins_where_a_statement_does(folder: Path) -> None:
    (folder / "own.py").write_text('x = """one\ntwo "quoted"\nthree"""\ny = (1 +\n     22 * 3)\n')
    for example in tasks.code(100, folder=folder, context=60):
        assert re.match(r"[xy]", example.prompt), example.prompt
    # 30 characters do not hold all of the literal: nothing is asked inside of its end.
    for example in tasks.code(100, folder=folder, context=24):
        assert not example.prompt.endswith("three")


def test_what_does_not_parse_is_left_out_and_counted(folder: Path) -> None:
    (folder / "wrong.py").write_text("def f(:\n    pass\n")
    (folder / "old.py").write_text("print 'two'\n")
    (folder / "bytes.py").write_bytes(b"x = '\xff\xfe'\n")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "other.py").write_text("a = 1 + 2\n")
    task = tasks.code(folder=folder)
    assert task.groups == ("own.py",)
    assert "3 files left out, which do not parse" in task.split_name
    (folder / "own.py").unlink()
    with pytest.raises(LensSkillsError, match=r"none of the 3 Python files.*parses"):
        tasks.code(folder=folder)


def test_folders_without_code_and_other_nonsense(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match=r"no \.py file in"):
        tasks.code(folder=tmp_path)
    with pytest.raises(LensSkillsError, match=r"not there\. Name a folder"):
        tasks.code(folder=tmp_path / "nowhere")
    (tmp_path / "a.py").write_text("# nothing but this\n")
    with pytest.raises(LensSkillsError, match=r"a file\. Name a folder"):
        tasks.code(folder=tmp_path / "a.py")
    with pytest.raises(LensSkillsError, match="no token is left of 1 modules"):
        tasks.code(folder=tmp_path)
    wrong: dict[str, Any]
    for wrong in ({"n": 0}, {"n_modules": 0}, {"context": 5}):
        with pytest.raises(LensSkillsError, match="are the least"):
            tasks.code(**wrong)


@pytest.mark.slow
def test_what_the_tokenizer_joins_is_left_out_and_counted(folder: Path, smollm: Any) -> None:
    from lens_skills.activations.forward import encode_examples
    from lens_skills.models import as_adapter

    whole = tasks.code(500, folder=folder)
    joined = 0
    for example in whole:
        try:
            encode_examples(as_adapter(smollm), [example], answers=True)
        except LensSkillsError:
            joined += 1
    kept = tasks.code(500, folder=folder, model=smollm)
    assert len(encode_examples(as_adapter(smollm), kept, answers=True)) == len(kept)
    assert 0 < joined == len(whole) - len(kept)
    assert f"{joined} tokens left out, which the tokenizer joins" in kept.split_name


def test_all_joined_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    from importlib import import_module

    monkeypatch.setattr(import_module("lens_skills.tasks.code"), "_joined", lambda *_: True)
    with pytest.raises(LensSkillsError, match="tokenizer joins all"):
        tasks.code(folder=folder, model=tiny)


def test_the_shell_opens_it(folder: Path) -> None:
    assert tasks.open_task(f"code:{folder}").groups == ("own.py",)
    assert "code" in tasks.GENERATORS
