"""Tables in print: the right numbers, rounded beside their intervals, and any name as it is."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from lens_skills.errors import LensSkillsError
from lens_skills.reporting.paper_cells import PaperColumn, printable, set_rows
from lens_skills.reporting.paper_columns import paper_table
from lens_skills.reporting.paper_tables import tex
from lens_skills.results import Result
from lens_skills.saved import KINDS
from tests import test_cards
from tests.plotting.conftest import make_scores
from tests.plotting.results import make_verdict
from tests.test_cards import made, result_classes

HOSTILE = (
    "<script>alert(1)</script> 50% of $x_1$ & {0} ~^ # |a| `c` [l](http://x.y) *b* __d__ "
    "\\input{/etc/passwd} \u202eevil\n\nnew \N{SLIGHTLY SMILING FACE} -- '' [0] a_b"
)
SHOWN = printable(HOSTILE)
NUMBER = re.compile(r"[+−]?[\d,.]+( \[[+−]?[\d,.]+, [+−]?[\d,.]+\])?|[\d.]+(×10⁻\S+)?|–|[+−]?∞")


@pytest.fixture(params=[kind.__name__ for kind in result_classes()])
def hostile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(test_cards, "LABEL", HOSTILE)
    kinds = {kind.__name__: kind for kind in result_classes()}
    with np.errstate(invalid="ignore"):  # made-up numbers need not divide
        return made(kinds[request.param])


def cells(source: str) -> tuple[str, list[list[str]]]:
    """The caption and the cells of a text in Markdown, as a reader sees them."""
    caption, row, rows = "", [], []
    for token in MarkdownIt("commonmark").enable("table").parse(source):
        if token.type == "tr_open":
            row = []
            rows.append(row)
        elif token.type == "inline":
            kinds = {child.type for child in token.children or ()}
            assert kinds <= {"text"}, f"{kinds} in {token.content}"
            text = "".join(child.content for child in token.children or ())
            if rows:
                row.append(text)
            else:
                caption = text
        else:
            assert token.type.split("_")[0] in (
                "paragraph",
                "table",
                "thead",
                "tbody",
                "tr",
                "th",
                "td",
            )
    return caption, rows


def test_any_name_is_shown_and_not_read_in_markdown(hostile: Result) -> None:
    caption, (heads, *rows) = cells(hostile.to_markdown(most=3))
    table = paper_table(hostile, most=3)
    assert (caption, heads) == (table.caption, list(table.heads))
    assert [tuple(row) for row in rows] == list(table.rows)
    assert len(table.rows) <= 3
    for row in rows:
        for numeric, cell in zip(table.numeric, row, strict=True):
            assert not numeric or NUMBER.fullmatch(cell), cell


def test_any_name_is_shown_and_not_read_in_latex(hostile: Result) -> None:
    table, source = paper_table(hostile, most=3), hostile.to_latex(most=3)
    plain = re.sub(r"\\[{}$&%#_]", "", source)  # what is escaped
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert plain.count("%") == 1  # of the comment
    assert not re.search(r"[#~^]", re.sub(r"\$\^\{?[-\d]+\}?\$", "", plain))
    assert set(re.findall(r"\\([a-zA-Z]+)", source)) <= {
        "usepackage", "begin", "end", "centering", "small", "medskip", "caption", "label",
        "toprule", "midrule", "bottomrule", "textbackslash", "textasciitilde", "textasciicircum",
        "times", "pm", "leq", "eta", "delta", "dagger", "langle", "rangle", "rightarrow", "cdot",
        "infty", "Vert", "Sigma", "dots",
    }  # fmt: skip
    rows = [line for line in source.split("\n") if line.endswith(r" \\")]
    assert len(rows) == 1 + len(table.rows)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(table.heads) - 1
        assert not row.startswith(("[", "*"))


def test_what_an_escaped_text_reads_as() -> None:
    assert printable(HOSTILE) in cells(made_of(HOSTILE).to_markdown())[1][1][0]
    assert tex("a_b & 50 % of $c$ {d} #1 ~^\\x<y>|z|") == (
        r"a\_b \& 50 \% of \$c\$ \{d\} \#1 \textasciitilde{}\textasciicircum{}\textbackslash{}x"
        "$<$y$>$$|$z$|$"
    )
    assert tex("[0.1] −2 9×10⁻⁵") == r"{[}0.1] $-$2 9$\times$10$^{-5}$"


def made_of(name: str) -> Any:
    verdict = make_verdict(3)
    return replace(verdict, rulings=tuple(replace(one, name=name) for one in verdict.rulings))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    with np.errstate(invalid="ignore"):
        tables = [made(kind).to_latex(label=f"tab:{kind.__name__}") for kind in result_classes()]
    tables.append(made_of(HOSTILE.encode("ascii", "ignore").decode()).to_latex(label="tab:last"))
    lines = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}"]
    text = "\n".join([*lines, *tables, r"\end{document}"])
    (tmp_path / "paper.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-1500:]


def test_every_kind_has_a_table_or_says_that_it_has_none() -> None:
    class Other(Result):
        pass

    for kind in KINDS:
        known = next(one for one in result_classes() if one.__name__ == kind)
        with np.errstate(invalid="ignore"):
            assert made(known).to_markdown().count("\n| ") >= 2
    with pytest.raises(LensSkillsError, match="a Other has no table"):
        Other().to_latex()


def test_numbers_stand_beside_their_intervals() -> None:
    verdict = make_verdict(6)
    first = verdict.rulings[0]
    heads, row = cells(verdict.to_markdown())[1][:2]
    assert heads[:2] == ["neuron", "effect (nats) [95 %]"]
    shown = f"{first.effect:+.2f} [{first.low:+.2f}, {first.high:+.2f}]".replace("-", "−")
    assert row[:2] == [first.name, shown]
    assert row[-1] == first.label
    latex = verdict.to_latex(label="tab:causal")
    assert r"\label{tab:causal}" in latex
    assert f"{first.name} & {shown.replace('−', '$-$')} & " in latex


def test_the_caption_says_what_was_measured_where_on_how_much() -> None:
    verdict = make_verdict(6)
    caption = cells(verdict.to_markdown(most=2))[0]
    for said in (
        "tiny, agreement", "mlp.hook_post at last", "logit_diff", "24 examples in 12 groups",
        "edited minus clean", "The first 2 of 7 neurons tried", "95 % intervals",
    ):  # fmt: skip
        assert said in caption
    again = cells(replace(verdict, exploratory=True).to_markdown())[0]
    assert again.startswith("EXPLORATORY")
    assert "The first" not in again
    doubtful = tuple(replace(one, doubtful=one.name == "L0N1") for one in verdict.rulings)
    caption, (_, row, other, *_) = cells(replace(verdict, rulings=doubtful).to_markdown())
    assert row[-1] == "supports †"
    assert "†: a few groups" in caption
    assert "†" not in other[-1]


def test_the_strongest_of_all_scores_come_first() -> None:
    scores = make_scores()
    frame = scores.frame()
    frame = frame.reindex(frame["r"].abs().sort_values(ascending=False, kind="stable").index)
    caption, (_, *rows) = cells(scores.to_markdown(most=30))
    assert f"The first 30 of {len(frame)} neurons and metrics" in caption
    shown = [tuple(row[:3]) for row in rows]
    expected = frame.head(30)[["name", "position", "metric"]]
    assert shown == [tuple(row) for row in expected.to_numpy().tolist()]
    r = [float(row[3].partition(" ")[0].replace("−", "-")) for row in rows]
    assert r == pytest.approx(frame["r"].head(30).tolist(), abs=0.006)
    one = cells(scores["confidence"].to_markdown(most=30))[1][1:]
    assert [row[0] for row in one[:5]] == frame[frame["metric"] == "confidence"]["name"].tolist()[
        :5
    ]
    assert {row[2] for row in one} == {"confidence"}


def test_a_wrong_request_is_said() -> None:
    verdict = make_verdict(2)
    with pytest.raises(LensSkillsError, match="most= is how many rows to print, 1 or more, not 0"):
        verdict.to_markdown(most=0)
    with pytest.raises(LensSkillsError, match="letters, digits"):
        verdict.to_latex(label="a b%")


def test_digits_follow_the_interval() -> None:
    rows = [
        {"e": 0.00123, "l": 0.0009, "h": 0.0015, "s": 0.2, "n": 46080, "p": 2e-7, "t": None},
        {"e": -0.2, "l": None, "h": float("nan"), "s": None, "n": None, "p": 0.5, "t": "a\x00b"},
    ]
    columns = [
        PaperColumn("e", "e", "number", ("l", "h"), True),
        PaperColumn("s", "s", "share"),
        PaperColumn("n", "n", "count"),
        PaperColumn("p", "p", "p"),
        PaperColumn("t", "t"),
    ]
    table = set_rows("It.", columns, rows, most=9, of="rows")
    assert table.rows == (
        ("+0.0012 [+0.0009, +0.0015]", "20", "46,080", "2×10⁻⁷", "–"),
        ("−0.2000", "–", "–", "0.5", "a b"),
    )
    empty = set_rows("It.", columns, [], most=9, of="rows")
    assert empty.caption == "It. There are none: no rows."
    assert isinstance(pd.DataFrame(list(empty.rows), columns=pd.Index(empty.heads)), pd.DataFrame)
