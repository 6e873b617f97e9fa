"""`markdown`, `latex`: the table a paper prints of a result, its columns from `paper_columns`.

Names may hold anything: either format shows it and reads no markup in it. LaTeX needs the package
``booktabs``, and for names in other scripts or with emoji an engine with such fonts (LuaLaTeX).
"""

import re
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.reporting.paper_cells import NOTHING, PaperTable
from lens_skills.reporting.paper_columns import paper_table
from lens_skills.results import file_name


def markdown(result: Any, *, most: int = 20) -> str:
    """The table in Markdown, under its caption."""
    table = paper_table(result, most=most)
    lines = [_marked(table.caption), "", *_grid(table)]
    return "\n".join(lines) + "\n"


def _grid(table: PaperTable) -> list[str]:
    rules = ["---:" if numeric else ":---" for numeric in table.numeric]
    rows = [[_marked(cell) for cell in row] for row in (table.heads, *table.rows)]
    return [f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:])]


def _marked(text: str) -> str:
    """A text in which Markdown reads no markup."""
    text = re.sub(r"([\\`*{}<>|~$#])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is a character
    text = re.sub(r"\[(?![+\N{MINUS SIGN}\d])", r"\\[", text)  # an interval is no link
    return text.replace("&", "&amp;").replace("](", "]\\(")


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$",
    "\N{MINUS SIGN}": "$-$", "×": r"$\times$", "→": r"$\rightarrow$", "≤": r"$\leq$",
    "≥": r"$\geq$", "±": r"$\pm$", "·": r"$\cdot$", "∞": r"$\infty$", "δ": r"$\delta$",
    "ε": r"$\varepsilon$", "η": r"$\eta$", "Σ": r"$\Sigma$", "‖": r"$\Vert$", "∆": r"$\Delta$",
    "Δ": r"$\Delta$", 
    "²": "$^2$", "†": r"$\dagger$", "⟨": r"$\langle$", "⟩": r"$\rangle$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "…": r"\dots{}",
    NOTHING: "--", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
_RAISED_RUN = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LOWERED = {ord(raised): plain for plain, raised in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}


def tex(text: str) -> str:
    r"""A text as LaTeX shows it, every character of its own kept as a character.

    >>> tex("50 % of a_b {−1}")
    '50 \\% of a\\_b \\{$-$1\\}'
    """
    parts, place = [], 0
    for run in _RAISED_RUN.finditer(text):
        parts.append("".join(_TEX.get(c, c) for c in text[place : run.start()]))
        digits = run[0].translate(_LOWERED)
        parts.append(f"$^{{{digits}}}$")
        place = run.end()
    parts.append("".join(_TEX.get(c, c) for c in text[place:]))
    made = "".join(parts)
    # After the end of a row, LaTeX takes a bracket or a star for an option of that end.
    return f"{{{made[0]}}}{made[1:]}" if made[:1] in ("[", "*") else made


def latex(result: Any, *, most: int = 20, label: str = "") -> str:
    """The table in LaTeX, with the rules of the package ``booktabs``."""
    table = paper_table(result, most=most)
    align = "".join("r" if numeric else "l" for numeric in table.numeric)
    name = label or f"tab:{file_name(type(result).__name__.lower())}"
    if re.search(r"[\\{}%#&~^\s$]", name):
        raise LensSkillsError(
            f"label={label!r} is none LaTeX can refer to: use letters, digits, ':', '-' and '_'."
        )
    rows = [" & ".join(map(tex, row)) + r" \\" for row in (table.heads, *table.rows)]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{tex(table.caption)}}}",
            rf"\label{{{name}}}",
            r"\medskip",
            rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
