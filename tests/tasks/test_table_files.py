"""Tables are read as they are written: every row against its line, or a clear no."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.table_files import read_columns, read_separated

QUOTES = (
    "label\ttext\n1\tThe soup was fine.\n0\t\"Never again, she said.\n1\tA pleasant evening.\n"
    '0\tCold food.\n1\tHe called it "lovely".\n0\t"Awful" is too kind.\n1\tWarm bread, good wine.\n'
)  # fmt: skip


def cells(path: Path, text: str | bytes, **options: Any) -> dict[str, list[Any]]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return dict(read_columns(path, **options).cells)


def test_every_line_of_a_tsv_with_quotation_marks_is_a_row(tmp_path: Path) -> None:
    by_hand = [line.split("\t") for line in QUOTES.splitlines()[1:]]
    found = cells(tmp_path / "q.tsv", QUOTES)
    assert [list(row) for row in zip(*found.values(), strict=True)] == by_hand
    # Two lone quotes that RFC 4180 would take for one cell of four lines.
    lucky = 'label\ttext\n0\t"Never.\n1\tNice.\n0\tAnd then"\n'
    assert cells(tmp_path / "l.tsv", lucky)["text"] == ['"Never.', "Nice.", 'And then"']


def test_a_file_written_with_quoting_is_read_with_it(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ['He said "no"', "two\nlines", "tab\there"], "n": [1, 2, 3]})
    for ending, separator in (("csv", ","), ("tsv", "\t"), ("csv", ";")):
        for quoting in (0, 1):  # minimal, all
            path = tmp_path / f"a.{ending}"
            frame.to_csv(path, sep=separator, index=False, quoting=quoting)  # type: ignore[call-overload]
            assert read_columns(path).cells["text"] == frame["text"].tolist()
            assert len(read_separated(path)[1]) == 3


def test_what_can_be_read_both_ways_is_refused(tmp_path: Path) -> None:
    text = 'label\ttext\n0\t"Never."\n'
    with pytest.raises(LensSkillsError, match=r"line 2: the cell .*quotes=False.*quotes=True"):
        cells(tmp_path / "a.tsv", text)
    assert cells(tmp_path / "a.tsv", text, quotes=True)["text"] == ["Never."]
    assert cells(tmp_path / "a.tsv", text, quotes=False)["text"] == ['"Never."']
    lucky = 'label,text\n0,"Never.\n1,Nice."\n'
    with pytest.raises(LensSkillsError, match="double quotes make 1 rows of 2 lines"):
        cells(tmp_path / "a.csv", lucky)
    assert len(cells(tmp_path / "a.csv", lucky, quotes=False)["text"]) == 2
    with pytest.raises(LensSkillsError, match=r"line 2: .*quotes=False"):
        cells(tmp_path / "a.csv", 'label,text\n0,"Awful" is kind\n')


def test_a_delimiter_at_the_end_of_each_row_moves_no_column(tmp_path: Path) -> None:
    rows = "Is ice cold?,yes,1,\nIs fire cold?,no,0,\n"
    for head in ("question,reply,score\n", "question,reply,score,\n"):
        found = cells(tmp_path / "s.csv", head + rows)
        assert found == {
            "question": ["Is ice cold?", "Is fire cold?"], "reply": ["yes", "no"],
            "score": ["1", "0"],
        }  # fmt: skip
    with pytest.raises(LensSkillsError, match="line 3: 4 cells, where line 1 has 3 columns"):
        cells(tmp_path / "s.csv", "question,reply,score\na,b,1\n" + rows)


def test_only_the_line_ends_of_files_divide_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two"}, {"text": "next\x85line\x0c"}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert cells(tmp_path / "a.jsonl", "\ufeff" + text)["text"] == [row["text"] for row in rows]
    assert cells(tmp_path / "a.json", text)["text"] == [row["text"] for row in rows]
    packed = gzip.compress(text.encode(), mtime=0)
    assert cells(tmp_path / "a.jsonl.gz", packed)["text"] == [row["text"] for row in rows]


def test_a_table_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "sst.TSV"
    path.write_text("1\tgood\n0\tbad\n")
    task = tasks.table(path, prompt="text", labels="label", header=("label", "text"))
    assert [(e.prompt, e.labels["label"]) for e in task] == [("good", 1), ("bad", 0)]
    with pytest.raises(LensSkillsError, match=r"no column 'text'.*header=\[…\]"):
        tasks.table(path, prompt="text")
    with pytest.raises(LensSkillsError, match="holds the names in header= already"):
        cells(path, "label\ttext\n1\tgood\n", header=("label", "text"))
    with pytest.raises(LensSkillsError, match=r"line 1: 2 cells, where header= has 3"):
        cells(path, "1\tgood\n", header=("label", "text", "x"))
    with pytest.raises(LensSkillsError, match="header='ab': give the names"):
        cells(path, "1\tgood\n", header="ab")
    with pytest.raises(LensSkillsError, match=r"header= and quotes= are for .csv"):
        read_columns([{"a": 1}], header=["a"])


def test_labels_are_numbers_only_where_every_cell_is_written_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "t,code,n,x,flag,long\na,007,1,.5,true,1234567890123456789\nb,1e3,2,1e-3,false,1\n"
    )
    labels = ["code", "n", "x", "flag", "long"]
    first, second = tasks.table(path, prompt="t", labels=labels)
    assert [*first.labels.values()] == ["007", 1, 0.5, True, "1234567890123456789"]
    assert [*second.labels.values()] == ["1e3", 2, 0.001, False, "1"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "a,b,a\n1,2,3\n", "2 columns are called 'a'"),
        ("a.csv", "\n\n", "is empty"),
        ("a.csv", '" "\n', "no names of columns"),
        ("a.csv", 'text\n""\nx\n', "row 0 .* has no prompt"),
        ("a.csv", b"t\nna\xefve\n", r"byte 4 \(line 2\) is 0xef, which is no UTF-8"),
        ("a.csv", "text\nx\n".encode("utf-16"), "it is UTF-16"),
        ("a.csv", "text\nx\n".encode("utf-16-le"), "byte 1 is 0"),
        ("a.csv", gzip.compress(b"text\n", mtime=0), "compressed. Call it .gz"),
        ("a.csv.gz", b"text\n", "cannot read"),
        ("a.csv", b"PK\x03\x04...", "zip archive"),
        ("a.xlsx", b"PK\x03\x04...", "none of .csv"),
        ("a.zip", b"PK\x03\x04...", "none of .csv"),
        ("a.jsonl", '[{"text": 1}]', "no JSON object.*is called .json"),
        ("a.jsonl", '{"text": 1, "text": 2}', "line 1 .*'text' stands twice"),
        ("a.json", '{"data": [{"text": 1}]}', "save its list 'data'"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"text": "\\ud800"}', "half a character"),
        ("a.csv", "text\n" + '"x' * 3, "line 2"),
        ("a.parquet", b"PAR1nothing", "as Parquet"),
    ],
)
def test_a_clear_no(name: str, content: str | bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LensSkillsError, match=complaint):
        tasks.table(tmp_path / name, prompt="text")


def test_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(LensSkillsError, match="it is a folder"):
        tasks.table(tmp_path / "b.csv", prompt="text")
    for spec in ("x" * 5000, "a\0b", "~nobody-at-all/x.csv"):
        with pytest.raises(LensSkillsError, match="no task"):
            tasks.open_task(spec)


def test_columns_of_a_frame_need_their_own_names() -> None:
    frame = pd.DataFrame([["x", "y"]], columns=["text", "text"])
    with pytest.raises(LensSkillsError, match="2 columns are called 'text'"):
        tasks.table(frame, prompt="text")
    assert tasks.table(pd.DataFrame([["x", "y"]]), prompt="1")[0].prompt == "y"


def test_json_by_columns_as_pandas_writes_it(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1, 0]})
    for orient in ("columns", "records"):
        frame.to_json(tmp_path / "a.json", orient=orient)  # type: ignore[call-overload]
        task = tasks.table(tmp_path / "a.json", prompt="text", labels="label")
        assert [(e.prompt, e.labels["label"]) for e in task] == [("a", 1), ("b", 0)]
    (tmp_path / "b.json").write_text(json.dumps(frame.to_dict("list")))
    assert len(tasks.table(tmp_path / "b.json", prompt="text")) == 2


def test_formats_and_parts_of_cells() -> None:
    rows = [{"x": 0.5, "n": 7, "word": "a", "list": ["p", "q"], "at": {"k": 1}, "a.b": "dot"}]

    def prompt(template: str) -> str:
        return tasks.table(rows, prompt=template)[0].prompt

    assert prompt("{x:.2f} {n:03d} {word:>3}|{word!r}|{list[1]}|{at[k]}|{a.b}") == (
        "0.50 007   a|'a'|q|1|dot"
    )
    for template, complaint in [
        ("{list}", "is a list and no text"),
        ("list", r"write one, \{list\[0\]\}"),
        ("{at}", r"write one of its values, \{at\[k\]\}"),
        ("{word:.2f}", r"cannot be written as \{word:.2f\}"),
        ("{list[2]}", r"asks for \[2\] of 'list'"),
        ("{word.upper}", "no column 'word.upper'"),
        ("{x:{n}}", "braces within braces"),
        ("{x!q}", "no template"),
    ]:
        with pytest.raises(LensSkillsError, match=complaint):
            prompt(template)
    with pytest.raises(LensSkillsError, match="is bytes and no text"):
        tasks.table([{"text": b"x"}], prompt="text")


def test_formats_of_a_text_file_read_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,n\n0.5,7\n")
    assert tasks.table(tmp_path / "a.csv", prompt="{x:.2f} {n:03d}")[0].prompt == "0.50 007"


def test_an_option_of_a_table_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(LensSkillsError, match=r"no option 'lables'. Did you mean 'labels'\?"):
        tasks.open_task(str(tmp_path / "a.csv"), {"prompt": "text", "lables": "y"})
