"""Small files of every shape that is read, and what may befall them: for tests and benchmarks.

A mutation takes a source of chance and the bytes of a file: bytes are flipped, cut, put in and
encoded anew; keys and cells of JSON are taken away, renamed and given another type.
"""

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from lens_skills import tasks
from lens_skills.activations import known_values, parse_metrics
from lens_skills.errors import LensSkillsError
from lens_skills.generation.grade_files import from_file
from lens_skills.tasks.table_files import text_lines

ROWS = [
    {"text": "The key, then", "word": "is", "label": 0, "n": 1.5, "all": ["is", "are"]},
    {"text": 'He said "no" to it', "word": "are", "label": 1, "n": 2.0, "all": ["is", "are"]},
    {"text": "Une clé", "word": "is", "label": 2, "n": -3.25, "all": ["are", "is"]},
    {"text": "Four", "word": "are", "label": 0, "n": 0.0, "all": ["are", "is"]},
]
CHOICES = [
    {"q": "a", "choices": ["w", "x", "y"], "answer": 2},
    {"q": "b", "choices": ["w", "x", "y"], "answer": 0},
]
BIGBENCH = {
    "name": "colours",
    "preferred_score": "multiple_choice_grade",
    "metrics": ["multiple_choice_grade"],
    "task_prefix": "Colours.",
    "append_choices_to_input": True,
    "examples": [
        {"input": "Grass is", "target_scores": {"red": 0, "green": 1}, "comment": "x"},
        {"context": "Winter.", "input": "Snow is", "target": "white"},
        {"input": "What is 3 plus 4?", "target": ["7"], "target_scores": {"7": 1, "8": 0.5}},
    ],
}
HANS = [
    {
        "gold_label": label, "sentence1": "The cook saw the \"poet .", "sentence2": "A cook left .",
        "pairID": f"ex{number}", "heuristic": rule, "subcase": f"{rule}_{label}", "template": "t1",
    }
    for number, (label, rule) in enumerate(
        [("entailment", "constituent"), ("non-entailment", "subsequence"),
         ("non-entailment", "lexical_overlap")]
    )
]  # fmt: skip
GRADES = [
    {"id": "a", "text": "One.", "topic": "Knots", "grades": {"pun": 1, "irony": 0.5}},
    {"text": "Two.", "grades": {"pun": None, "irony": 0}},
]
SKILLS = 'category,skill,definition,example\nx,pun,"A play, on words.","He said ""hi""."\n,a,b,c\n'


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def _separated(rows: list[dict[str, Any]], separator: str, quote: bool) -> bytes:
    def cell(value: Any) -> str:
        text = json.dumps(value) if isinstance(value, list) else str(value)
        return f'"{text}"'.replace('"', '""')[1:-1] if quote and set(text) & set(',"') else text

    lines = [separator.join(rows[0]), *(separator.join(map(cell, row.values())) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def _table(path: Path) -> Any:
    return tasks.table(path, prompt="text", answer="word", options="all", labels="label",
                       covariates="n")  # fmt: skip


def _template(path: Path) -> Any:
    return tasks.table(path, prompt="{text} {n:.1f}", answer=" {word}", labels=["label", "n"])


def _choices(path: Path) -> Any:
    return tasks.table(path, prompt="{q} {choices[0]}", answer="answer", options="choices",
                       join=" ")  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """What is read, and how.

    Attributes:
        ending: Of the file.
        content: A file that can be read.
        read: From a path to what was read.
        count: From the bytes of a file to how many rows they hold, or None where only reading says.
    """

    ending: str
    content: bytes
    read: Callable[[Path], Any]
    count: Callable[[bytes], int | None] = lambda data: None


def _filled(data: bytes) -> int | None:
    return sum(bool(line.strip()) for line in text_lines(data.decode("utf-8-sig")))


def _without_header(data: bytes) -> int | None:
    return None if b'"' in data else (_filled(data) or 1) - 1


def _hans_rows(data: bytes) -> int | None:
    return (_filled(data) or 1) - 1


def _listed(data: bytes) -> int | None:
    found = json.loads(data.decode("utf-8-sig"))
    return len(found.get("examples", found))


READERS: dict[str, Reader] = {
    "bigbench": Reader(".json", json.dumps(BIGBENCH).encode(), tasks.bigbench, _listed),
    "hans": Reader(".txt", _separated(HANS, "\t", False), tasks.hans, _hans_rows),
    "hans jsonl": Reader(".jsonl", _lines(HANS), tasks.hans, _filled),
    "csv": Reader(".csv", _separated(ROWS, ",", True), _table, _without_header),
    "tsv": Reader(".tsv", _separated(ROWS, "\t", False), _template, _without_header),
    "jsonl": Reader(".jsonl", _lines(ROWS), _table, _filled),
    "json": Reader(".json", json.dumps(CHOICES).encode(), _choices),
    "parquet": Reader(".parquet", _parquet(ROWS), _table),
    "grades jsonl": Reader(".jsonl", _lines(GRADES), from_file),
    "grades csv": Reader(".csv", b"id,text,pun,irony\na,One,1,\nb,\"Two,\n2\",0.5,0\n", from_file),
    "skills": Reader(".csv", SKILLS.encode(), lambda path: tasks.skill_mix(path, ["x"], k=1)),
    "topics": Reader(".txt", b"Knots\nBees\nChess", lambda path: tasks.skill_mix(None, path)),
}  # fmt: skip

_ODD = (
    None, True, -1, 0, 3.5, float("nan"), float("inf"), 10**400, -(2**63), "", " ", "x", "7",
    "\ud800", "\u2028", [], {}, [1], [[["x"]]], {"a": None}, ["x", None], "entailment",
)  # fmt: skip
_BYTES = (
    b'"', b"'", b"\t", b",", b";", b"\n", b"\r", b"\0", b"\\", b"{", b"}", b"[", b"]", b"\xff",
    b"\xef\xbb\xbf", "\u2028\x85é".encode(), b'""', b"NaN", b"1e999", b"-", b"\n\n", b"null",
)  # fmt: skip


def mutated(chance: Any, reader: Reader) -> bytes:
    """The file of a reader after one to four mishaps; ``chance`` is a `random.Random`."""
    data = reader.content
    if reader.ending != ".parquet" and chance.random() < 0.5:
        data = _restructured(chance, data)
    elif reader.ending == ".parquet" and chance.random() < 0.7:
        rows = [dict(row) for row in ROWS]
        _change(chance, rows)
        try:
            data = _parquet(rows)
        except Exception:  # no such table can be written
            data = reader.content
    for _ in range(chance.randrange(4)):
        data = _damaged(chance, data)
    return data


def _damaged(chance: Any, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    to = min(len(data), at + chance.randrange(12))
    kind = chance.randrange(8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[to:]
    if kind == 2:
        return data[:to] + data[at:]  # twice
    if kind == 3 and data:
        place = min(at, len(data) - 1)
        return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
    if kind == 4 and chance.random() < 0.2:
        try:
            return data.decode().encode(
                chance.choice(["utf-16", "latin-1", "utf-16-le", "utf-8-sig"])
            )
        except UnicodeError:
            return data
    return data[:at] + chance.choice(_BYTES) + data[at:]


def _restructured(chance: Any, data: bytes) -> bytes:
    """A file of JSON, or of JSON lines, with one of its parts changed; another file as it is."""
    text = data.decode()
    try:
        whole = json.loads(text)
    except ValueError:
        try:
            rows = [json.loads(line) for line in text.split("\n")]
        except ValueError:
            return data
        _change(chance, rows)
        return "\n".join(json.dumps(row) for row in rows).encode()
    _change(chance, whole)
    return json.dumps(whole).encode()


def _change(chance: Any, value: Any) -> None:
    """Changes one part of nested lists and dicts, in place."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(value[key], list | dict) and value[key] and chance.random() < 0.75:
            value = value[key]
            continue
        kind = chance.randrange(4)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(value, dict):
            value[chance.choice(["input", "Text", "label ", "", "target", "x"])] = value.pop(key)
        elif kind == 2 and isinstance(value, list):
            value.append(value[key])
        else:
            value[key] = chance.choice(_ODD)
        return


def outcome(reader: Reader, data: bytes, path: Path) -> str:
    """ "read", "refused", or what a reader may not do: another error, a row lost or made."""
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = reader.read(path)
        if not isinstance(found, tasks.Task):
            return "read"
        rows = reader.count(data)
        if rows is not None and rows != len(found):
            return f"{rows} rows, read as {len(found)}"
    except LensSkillsError:
        return "refused"
    except Exception as error:  # what is looked for
        return f"{type(error).__name__}: {error}"
    try:
        found.fingerprint()
        found.frame()
        tasks.few(found, 2)
        for name in found[0].labels:
            known_values(parse_metrics(f"label:{name}", found), found)
        found.split(0.5, 0.5)
    except LensSkillsError:
        return "read"  # too few groups to split, a label that some examples lack
    except Exception as error:
        return f"then {type(error).__name__}: {error}"
    return "read"
