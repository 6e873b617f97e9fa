"""What the script of a report's page reads: a document as JSON, small and without surprises.

Rows are lists in the order of the columns: no name from outside is ever a key. Tokens are numbers
of a list of texts; the correlations of all neurons are base64 of little-endian arrays.
"""

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

import numpy as np

from lens_skills.reporting.document import (
    Cell,
    ColumnSpec,
    Document,
    EveryNeuron,
    Graph,
    NeuronPage,
    Quantile,
)

MOST_NUMBERS = 800_000
"""Of the correlations of all neurons, how many are embedded: 2 MB as text."""

NAME = "neuron"
"""The key under which a row names its neuron."""

# Characters that are not seen but change what is: controls, separators of lines, changes of
# direction, marks of byte order, halves of surrogate pairs. Joiners stay: emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


def seen(value: Any) -> Any:
    """The value with every character in it that would not be seen written out: ``⟨U+202E⟩``."""
    if isinstance(value, str):
        return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", value)
    if is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, EveryNeuron):  # numbers, and a million of them
            return replace(value, r=seen(value.r), threshold=seen(value.threshold))
        return replace(value, **{f.name: seen(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, Mapping):
        return {
            seen(key): item if item is None or isinstance(item, int | float) else seen(item)
            for key, item in value.items()
        }
    if isinstance(value, tuple | list) and not (value and isinstance(value[0], int | float)):
        return type(value)(seen(item) for item in value)
    return value


def as_json(value: Any) -> str:
    """JSON that can stand in a ``<script>``: ASCII without ``<``, ``>`` and ``&``."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(value: Any) -> Any:
    """Anything as JSON's values: numbers that are not finite as None, what is unknown as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | np.ndarray):
        return [plain(item) for item in value]
    return str(value)


def strongest(every: EveryNeuron | None) -> tuple[EveryNeuron | None, int]:
    """As many neurons as fit, by the largest \\|r\\| under any metric, and how many there are."""
    if every is None or not every.layer or not every.r:
        return None, 0
    total, most = len(every.layer), MOST_NUMBERS // max(1, len(every.r))
    if total <= most:
        return every, total
    size = np.max([np.nan_to_num(np.abs(np.asarray(r))) for r in every.r.values()], axis=0)
    kept = np.sort(np.argsort(-size, kind="stable")[:most])
    cut = replace(
        every,
        layer=tuple(every.layer[k] for k in kept),
        index=tuple(every.index[k] for k in kept),
        r={name: tuple(r[k] for k in kept) for name, r in every.r.items()},
    )
    return cut, total


def columns_of(document: Document) -> tuple[ColumnSpec, ...]:
    """The columns with the neuron's name first, which there may be no column for."""
    named = [column for column in document.columns if column.key == NAME]
    first = named[0] if named else ColumnSpec(NAME, "neuron", "Its layer, and its number in it.")
    return (first, *(column for column in document.columns if column.key != NAME))


def cells_of(row: Mapping[str, Cell], columns: tuple[ColumnSpec, ...]) -> list[Any]:
    """The row's values by column; one with an interval is ``[value, low, high]``."""
    found: list[Any] = []
    for column in columns:
        value = plain(row.get(column.key))
        if column.interval is not None:
            value = [value, *(plain(row.get(key)) for key in column.interval)]
        found.append(value)
    return found


def payload(document: Document, every: EveryNeuron | None, total: int) -> dict[str, Any]:
    """All that the script reads. `every` and `total` are as `strongest` gives them."""
    texts: dict[str, int] = {}
    columns = columns_of(document)
    return {
        "title": document.title,
        "columns": [
            [c.key, c.title, c.help, c.digits, c.unit, c.interval is not None] for c in columns
        ],
        "rows": [cells_of(row, columns) for row in document.rows],
        "n_rows": max(document.n_rows, len(document.rows)),
        "neurons": [_neuron(page, columns, texts) for page in document.neurons],
        "circuits": [_graph(graph) for graph in document.circuits],
        "every": None if every is None else _every(every, total),
        "tokens": list(texts),
    }


def _neuron(page: NeuronPage, columns: tuple[ColumnSpec, ...], texts: dict[str, int]) -> Any:
    """A page, its tokens as numbers of `texts`."""
    named = {f.name: getattr(page, f.name) for f in fields(page)}
    quantiles = [_quantile(quantile, texts) for quantile in named.pop("quantiles")]
    cells = cells_of({NAME: page.name, **named.pop("row")}, columns)
    return {**plain(named), "cells": cells, "quantiles": quantiles}


def _quantile(quantile: Quantile, texts: dict[str, int]) -> Any:
    rows = [
        [
            [texts.setdefault(token, len(texts)) for token in row.tokens],
            [_short(value) for value in row.values],
            row.read,
            _short(row.activation),
            row.group,
            row.labels,
        ]
        for row in quantile.rows
    ]
    limits = [_short(quantile.low), _short(quantile.high)]
    return [quantile.name, *limits, quantile.n_examples, rows]


def _graph(graph: Graph) -> Any:
    """A circuit, its edges by the numbers of their nodes."""
    place = {node.id: k for k, node in enumerate(graph.nodes)}
    nodes = [[n.label, n.kind, n.layer, n.column, n.place, n.start, n.neuron] for n in graph.nodes]
    edges = [
        [
            *(place[edge.sender], place[edge.receiver], edge.channel, edge.target, edge.verdict),
            *(_short(x) for x in (edge.effect, edge.low, edge.high, edge.share, edge.q)),
        ]
        for edge in graph.edges
        if edge.sender in place and edge.receiver in place
    ]
    return {
        "anchor": graph.anchor,
        "title": graph.title,
        "nodes": nodes,
        "edges": edges,
        "unit": [[target, unit] for target, unit in graph.unit.items()],
        "sign": graph.sign,
        "caveats": graph.caveats,
    }


def _every(every: EveryNeuron, total: int) -> Any:
    # Layer by layer, the number of a layer's neurons and a bit for each say which is which.
    wide = max(every.index) + 1
    place = np.asarray(every.layer) * wide + np.asarray(every.index)
    ordered = bool((np.diff(place) > 0).all())
    held = np.zeros(place[-1] + 1 if ordered else 0, dtype=bool)
    held[place if ordered else []] = True
    return {
        "total": total,
        "wide": wide if ordered else None,
        "held": None if not ordered or held.all() else _packed(np.packbits(held), "<u1"),
        "layer": None if ordered else _packed(every.layer, "<u2"),
        "index": None if ordered else _packed(every.index, "<u4"),
        "metrics": list(every.r),
        "r": [_packed(_in_steps(r), "<i2") for r in every.r.values()],
        "threshold": [plain(every.threshold.get(name)) for name in every.r],
    }


def _in_steps(r: Any) -> Any:
    """r in steps of 0.0001, of which three decimals are shown; -32768 where there is none."""
    steps = np.round(np.asarray(r, dtype=float) * 10_000)
    return np.where(np.isfinite(steps), steps, -32768)


def _packed(values: Any, kind: str) -> str:
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode("ascii")


def _short(value: Any) -> float | None:
    """A number to four digits; more are not shown."""
    return None if value is None or not math.isfinite(value) else float(f"{float(value):.4g}")
