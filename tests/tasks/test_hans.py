"""hans: the authors' file and JSON Lines read alike, bad rows named by their line."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError

HEADER = (
    "gold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2\tpairID\theuristic\tsubcase\ttemplate"
)
# Written by hand in the file's format: gold, premise, hypothesis, heuristic, sub-case, template.
ROWS = [
    ("non-entailment", "The cook hugged the nurse .", "The nurse hugged the cook .",
     "lexical_overlap", "ln_swap", "temp1"),
    ("non-entailment", "The cooks hugged the nurse .", "The nurse hugged the cooks .",
     "lexical_overlap", "ln_swap", "temp2"),
    ("entailment", "The cook was hugged by the nurse .", "The nurse hugged the cook .",
     "lexical_overlap", "le_passive", "temp3"),
    ("entailment", "Tall cooks slept .", "Cooks slept .", "subsequence", "se_adjective", "temp4"),
    ("non-entailment", "The cook near the nurse slept .", "The nurse slept .",
     "subsequence", "sn_PP", "temp5"),
    ("entailment", "Since the cook slept , the nurse left .", "The cook slept .",
     "constituent", "ce_since", "temp6"),
    ("non-entailment", "If the cook slept , the nurse left .", "The cook slept .",
     "constituent", "cn_if", "temp7"),
    ("non-entailment", "If the poet slept , the nurse left .", "The poet slept .",
     "constituent", "cn_if", "temp7"),
]  # fmt: skip


def lines() -> list[str]:
    return [HEADER] + [
        "\t".join([gold, "( b )", "( b )", "(ROOT )", "(ROOT )", p, h, f"ex{i}", rule, case, form])
        for i, (gold, p, h, rule, case, form) in enumerate(ROWS)
    ]


def write(folder: Path, rows: list[str], name: str = "set.txt", end: str = "\n") -> Path:
    path = folder / name
    path.write_bytes((end.join(rows) + end).encode())
    return path


def test_columns_and_prompts(tmp_path: Path) -> None:
    task = tasks.hans(write(tmp_path, lines()))
    assert (task.name, len(task)) == ("hans", 8)
    first = task[0]
    assert first.prompt == (
        "Premise: The cook hugged the nurse.\nHypothesis: The nurse hugged the cook.\n"
        "Question: Does the hypothesis follow from the premise? Yes or No?\nAnswer:"
    )
    assert (first.id, first.answer, first.foil) == ("ex0", " No", " Yes")
    assert dict(first.labels) == {
        "entailment": 0,
        "heuristic": "lexical_overlap",
        "lexical_overlap": 1,
        "subsequence": 0,
        "constituent": 0,
    }
    assert dict(first.covariates) == {
        "subcase": "ln_swap",
        "template": "temp1",
        "n_words_premise": 5,
        "n_words_hypothesis": 5,
        "overlap": 1.0,
        "negation": 0,
    }
    assert (first.group, first.kind) == ("ln_swap", "ln_swap")
    assert task[5].prompt.startswith("Premise: Since the cook slept, the nurse left.\n")
    assert task[2].answer == " Yes"
    assert task.column("entailment").tolist() == [0, 0, 1, 1, 0, 1, 0, 0]


def test_every_way_to_write_the_file(tmp_path: Path) -> None:
    plain = tasks.hans(write(tmp_path, lines())).fingerprint()
    assert tasks.hans(write(tmp_path, lines(), "crlf.tsv", "\r\n")).fingerprint() == plain
    marked = ["\ufeff" + lines()[0], "", *lines()[1:], "  "]
    assert tasks.hans(write(tmp_path, marked, "bom.txt")).fingerprint() == plain
    names = HEADER.split("\t")
    objects = [json.dumps(dict(zip(names, row.split("\t"), strict=True))) for row in lines()[1:]]
    assert tasks.hans(write(tmp_path, objects, "set.jsonl")).fingerprint() == plain
    turned = ["\t".join(reversed(row.split("\t"))) for row in lines()]
    assert tasks.hans(write(tmp_path, turned, "turned.txt")).fingerprint() == plain


@pytest.mark.parametrize(
    ("line", "change", "words"),
    [
        (3, lambda row: row.rsplit("\t", 1)[0], "line 3: 10 cells.*has 11"),
        (4, lambda row: row + "\tmore", "line 4: 12 cells"),
        (
            2,
            lambda row: row.replace("non-entailment", "neutral"),
            "line 2: gold_label is 'neutral'",
        ),
        (6, lambda row: row.replace("subsequence", "length"), "line 6: heuristic is 'length'"),
        (5, lambda row: row.replace("Tall cooks slept .", ""), "line 5: sentence1 is missing"),
        (9, lambda row: row.replace("ex7", "ex2"), "line 9: the pairID 'ex2' was used in line 4"),
        (1, lambda row: row.replace("subcase", "sub"), "line 1: the columns subcase are missing"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, line: int, change, words: str) -> None:
    rows = lines()
    rows[line - 1] = change(rows[line - 1])
    with pytest.raises(LensSkillsError, match=words):
        tasks.hans(write(tmp_path, rows))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="cannot read"):
        tasks.hans(tmp_path / "none.txt")
    with pytest.raises(LensSkillsError, match="holds no examples"):
        tasks.hans(write(tmp_path, [HEADER]))
    with pytest.raises(LensSkillsError, match="the file is empty"):
        tasks.hans(write(tmp_path, [""]))
    good = json.dumps(dict(zip(HEADER.split("\t"), lines()[1].split("\t"), strict=True)))
    bad = write(tmp_path, [good, "what"], "bad.jsonl")
    with pytest.raises(LensSkillsError, match=r"line 2 is not JSON .*'what'"):
        tasks.hans(bad)
    (tmp_path / "latin.txt").write_bytes(b"gold_label\tna\xefve")
    with pytest.raises(LensSkillsError, match="cannot read"):
        tasks.hans(tmp_path / "latin.txt")


def test_few_rows_are_drawn_evenly(tmp_path: Path) -> None:
    path = write(tmp_path, lines())
    some = tasks.hans(path, n=6, seed=1)
    assert len(set(some.column("subcase"))) == 6
    assert [e.id for e in some] == sorted(e.id for e in some)
    assert {tasks.hans(path, n=6, seed=s).fingerprint() for s in range(6)} != {some.fingerprint()}
    assert len(tasks.hans(path, n=7)) == 7
    assert len(tasks.hans(path, n=99)) == 8
    with pytest.raises(LensSkillsError, match="at least 1"):
        tasks.hans(path, n=0)


def test_demonstrations_leave_the_task(tmp_path: Path) -> None:
    path = write(tmp_path, lines())
    task = tasks.hans(path, shots=4, seed=2)
    assert len(task) == 4
    (shown,) = {tuple(e.prompt.split("\n\n")[:-1]) for e in task}
    assert Counter(text.rsplit(":", 1)[1] for text in shown) == {" Yes": 2, " No": 2}
    whole = {e.prompt + str(e.answer): e.id for e in tasks.hans(path)}
    ids = {whole[text] for text in shown}
    assert len(ids) == 4
    assert ids | {e.id for e in task} == {f"ex{i}" for i in range(8)}
    with pytest.raises(LensSkillsError, match="shots=7: there are 3 pairs whose answer is yes"):
        tasks.hans(path, shots=7)


def test_groups_can_be_templates(tmp_path: Path) -> None:
    task = tasks.hans(write(tmp_path, lines()), group="template")
    assert task[0].group == "ln_swap temp1"
    assert (len(task.groups), task[0].kind) == (7, "ln_swap")


def test_the_shell_knows_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, lines())
    for spec in (str(path), f"hans:{path}"):
        assert tasks.open_task(spec).name == "hans"
    table = tasks.open_task(str(write(tmp_path, lines(), "t.tsv")), {"prompt": "sentence1"})
    assert table.name == "t"
    with pytest.raises(LensSkillsError, match="no task 'hans:nowhere'"):
        tasks.open_task("hans:nowhere")


def test_the_real_file(shared_data: Path) -> None:
    path = shared_data / "hans" / "heuristics_evaluation_set.txt"
    task = tasks.hans(path)
    assert (len(task), len(task.groups)) == (3000, 30)
    cells = Counter((e.labels["heuristic"], e.labels["entailment"]) for e in task)
    assert set(cells.values()) == {500}
    assert len(cells) == 6
    # The authors' first letters say the rule, their second ones the answer.
    for e in task:
        rule, side = str(e.covariates["subcase"])[:2]
        assert str(e.labels["heuristic"])[0] == rule
        assert (side == "e") == bool(e.labels["entailment"])
    assert not any(" ." in e.prompt or " ," in e.prompt for e in task)
    assert set(Counter(tasks.hans(path, n=300).column("subcase")).values()) == {10}
    assert [len(part.groups) for part in task.split(0.2, 0.4, 0.2, 0.2)] == [6, 12, 6, 6]


def test_as_the_hub_exports_it(tmp_path: Path) -> None:
    """Integer labels (0 is entailment) and other names; the same task as the authors' file."""
    authors = tasks.hans(write(tmp_path, lines()))
    names = HEADER.split("\t")
    rows = []
    for line in lines()[1:]:
        row = dict(zip(names, line.split("\t"), strict=True))
        rows.append({
            "premise": row["sentence1"], "hypothesis": row["sentence2"],
            "label": int(row["gold_label"] != "entailment"), "parse_premise": "",
            **{name: row[name] for name in ("heuristic", "subcase", "template")},
        })  # fmt: skip
    path = write(tmp_path, [json.dumps(row) for row in rows], "hub.jsonl")
    for task in (tasks.hans(path), tasks.hans(rows), tasks.open_task(str(path))):
        assert [(e.prompt, e.answer, e.labels) for e in task] == [
            (e.prompt, e.answer, e.labels) for e in authors
        ]
        assert [e.id for e in task] == [str(n) for n in range(len(rows))]
    with pytest.raises(LensSkillsError, match="line 1: gold_label is '2', not one of"):
        tasks.hans(write(tmp_path, [json.dumps({**rows[0], "label": 2})], "two.jsonl"))


def test_quotation_marks_are_part_of_the_sentences(tmp_path: Path) -> None:
    rows = lines()
    rows[1] = rows[1].replace("The ", '"The ', 1)
    rows[4] = rows[4].replace(" .", ' "', 1)
    assert len(tasks.hans(write(tmp_path, rows))) == len(rows) - 1


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    row = dict(zip(HEADER.split("\t"), lines()[1].split("\t"), strict=True))
    path = write(tmp_path, [json.dumps({**row, "pairID": "\ud800"})], "half.jsonl")
    with pytest.raises(LensSkillsError, match="holds half a character"):
        tasks.hans(path)
