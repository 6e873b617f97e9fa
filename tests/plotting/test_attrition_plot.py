"""The counts after each step, and the table of what speaks for each neuron."""

from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from lens_skills.errors import LensSkillsError
from lens_skills.plotting import figures
from lens_skills.plotting.style import EVIDENCE, PALE
from tests.plotting.conftest import make_selection


def ruled(**words: str) -> Any:
    """A verdict with a word for each neuron, in place of one that was measured."""
    singles = [
        SimpleNamespace(
            name=name,
            word=word,
            effect=-0.3,
            low=-0.4,
            high=-0.2,
            q=0.01,
            percent=-10.0,
            large=False,
        )
        for name, word in words.items()
    ]
    causal = [one.name for one in singles if one.word in ("supports", "opposes", "mixed")]
    return SimpleNamespace(singles=singles, causal=causal)


def test_the_counts_are_the_attrition() -> None:
    drawing = figures.attrition(make_selection())
    steps = drawing.frame[drawing.frame["name"] == ""]
    assert dict(zip(steps["gate"], steps["count"], strict=True)) == {
        "neurons": 120,
        "associated": 7,
        "beat the control task": 4,
        "confirmed": 2,
    }
    top = drawing.figure.axes[0]
    assert [t.get_text() for t in top.texts if t.get_weight() == "bold"] == ["120", "7", "4", "2"]
    words = " ".join(text.get_text() for text in drawing.figure.texts)
    for part in ("plural (label)", "MLP activations, last token", "FDR 5%", "2 examples, 1 groups"):
        assert part in words
    assert "1 of the confirmed are basis-privileged" in words
    with pytest.raises(LensSkillsError, match="no steps"):
        figures.attrition({})
    with pytest.raises(LensSkillsError, match="k= is how many"):
        figures.attrition(make_selection(), k=-1)


def test_a_cell_is_coloured_where_the_neuron_passes_and_empty_where_it_was_not_tried() -> None:
    drawing = figures.attrition(make_selection(), ruled(L2N0="supports", L2N1="undecided"))
    cells = drawing.frame[drawing.frame["name"] != ""]
    passed = cells.pivot(index="name", columns="gate", values="passed").astype(object)
    expected = {  # control, confirmed, basis, causal
        "L2N0": (True, True, True, True),
        "L2N1": (True, True, False, False),
        "L2N2": (True, False, False, None),
        "L2N3": (False, True, False, None),
        "L2N4": (False, False, False, None),
        "L2N5": (True, False, False, None),
        "L2N6": (True, None, False, None),
    }
    order = ("beat the control task", "confirmed", "basis-privileged", "causal")
    for name, row in expected.items():
        found = [passed.loc[name, gate] for gate in order]
        assert [None if value != value else value for value in found] == list(row), name
    table = drawing.figure.axes[1]
    drawn = [to_hex(p.get_facecolor()) for p in table.patches if isinstance(p, Rectangle)]
    tried = cells[cells["passed"].notna()]
    looks = [(EVIDENCE[row.gate] if row.passed else PALE).lower() for row in tried.itertuples()]
    assert drawn == looks
    grades = cells.drop_duplicates("name").set_index("name")["grade"]
    assert grades.tolist() == ["A", "B", "C", "C", "", "", ""]
    assert drawing.frame.set_index("gate")["count"]["causal"].dropna().tolist() == [1]
    assert "-10 %" in {t.get_text().replace("\N{MINUS SIGN}", "-") for t in table.texts}


def test_only_the_first_neurons_are_shown_and_the_others_counted() -> None:
    drawing = figures.attrition(make_selection(), k=2)
    assert drawing.frame["name"].unique().tolist() == ["", "L2N0", "L2N1"]
    words = " ".join(text.get_text() for text in drawing.figure.texts)
    assert "2 of 7 associated neurons" in words
    assert len(figures.attrition(make_selection(), k=0).figure.axes) == 1
