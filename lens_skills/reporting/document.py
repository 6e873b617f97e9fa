"""What a report says, as plain values: made from results by `gather`, shown as a page by `render`.

Nothing here is HTML, and every text may hold anything a prompt or a label can hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Cell = str | float | int | bool | None
"""A value of a table; None where nothing was measured."""


@dataclass(frozen=True)
class Fact:
    """One line of a list: what it is, and its value in words.

    Attributes:
        code: Whether the value is something to type, shown in a fixed-width font and to be copied.
    """

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Step:
    """A step of the attrition: how many neurons were left after it.

    Attributes:
        note: What the step asks of a neuron, in one sentence.
    """

    name: str
    count: int
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure: SVG without scripts, what it shows in words, and its numbers.

    Attributes:
        anchor: Its deep link, ``figure-…``.
        alt: What a reader who cannot see it must know; never empty.
        table: Column names, then rows; as much of them as fits a page.
    """

    anchor: str
    title: str
    svg: str
    alt: str
    table: tuple[tuple[Cell, ...], ...] = ()


@dataclass(frozen=True)
class Card:
    """A result as it is printed, with its caveats.

    Attributes:
        anchor: Its deep link, ``card-…``.
        text: In lines of at most 80 columns.
        table: As of a picture.
    """

    anchor: str
    title: str
    text: str
    table: tuple[tuple[Cell, ...], ...] = ()


@dataclass(frozen=True)
class ColumnSpec:
    """A column of the table of neurons.

    Attributes:
        key: In the rows.
        title: Its head, short.
        help: What the number is, its unit, and how it may mislead.
        digits: Decimals shown; None for texts.
        interval: The keys of its lower and upper end, shown beside it.
    """

    key: str
    title: str
    help: str
    digits: int | None = None
    interval: tuple[str, str] | None = None
    unit: str = ""


@dataclass(frozen=True)
class EveryNeuron:
    """The correlations of all neurons of the model, associated or not.

    Attributes:
        layer, index: Of each neuron, flat.
        r: By metric, one number per neuron; NaN where a neuron does not vary.
        threshold: By metric, the family-wise 5 % threshold of \\|r\\|, or None.
    """

    layer: tuple[int, ...]
    index: tuple[int, ...]
    r: Mapping[str, tuple[float, ...]]
    threshold: Mapping[str, float | None]


@dataclass(frozen=True)
class TokenRow:
    """An example as a neuron reads it.

    Attributes:
        tokens: As texts, spaces included.
        values: The activation at each.
        read: The place among the tokens at which it was scored; None where at several.
        labels: Of the example, in words: ``plural = 1``.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    read: int | None = None
    activation: float | None = None
    group: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantile:
    """Some examples whose activation lies in one part of its ranks, the strongest first.

    Attributes:
        name: ``"highest"``, ``"80–100 %"`` (of the examples, by rank), …, ``"lowest"``.
        low, high: Of the activations in it, over ``n_examples``.
    """

    name: str
    low: float
    high: float
    n_examples: int
    rows: tuple[TokenRow, ...]


@dataclass(frozen=True)
class Written:
    """Tokens a neuron makes more and less likely, by one lens.

    Attributes:
        lens: ``"logit lens"`` or ``"Jacobian lens"``.
        how: What stands between the neuron and the logits, and the unit, in words.
    """

    lens: str
    how: str
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Control:
    """The effects of the neurons a neuron is compared with, for a strip of dots beside its own."""

    effects: tuple[float, ...]
    effect: float
    low: float
    high: float
    delta: float
    unit: str
    rank: str


@dataclass(frozen=True)
class NeuronPage:
    """One neuron.

    Attributes:
        name: ``L17N635``; its deep link is ``neuron-L17N635``.
        summary: What is known of it in one sentence.
        grade: ``A``, ``B``, ``C`` or "".
        row: Its values by the keys of the table's columns.
        facts: Further numbers, each with its interval and unit in words.
        verdict: The word of the verdict, and why; "" where it was not tried.
        quantiles: Examples, from the highest activations down; of a neuron that mostly fires below
            0 from the lowest up.
        explanation: Sentences.
        features: Column names, then rows: the features that explain it.
        correlated: (name, r) of those that go with it over the examples, the strongest first.
        cluster: The neurons it was grouped with, and by what.
        diagnostics: Of the regulators, redundancy, memorisation.
        circuits: Anchors of the circuits it stands in.
        caveats: What this page's numbers do not show.
    """

    name: str
    summary: str
    grade: str
    row: Mapping[str, Cell]
    facts: tuple[Fact, ...] = ()
    verdict: str = ""
    controls: Control | None = None
    quantiles: tuple[Quantile, ...] = ()
    written: tuple[Written, ...] = ()
    explanation: tuple[str, ...] = ()
    features: tuple[tuple[Cell, ...], ...] = ()
    correlated: tuple[tuple[str, float], ...] = ()
    cluster: tuple[str, ...] = ()
    diagnostics: tuple[Fact, ...] = ()
    circuits: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphNode:
    """A node of a circuit.

    Attributes:
        id: Unique in the graph.
        label: ``L26H0``.
        kind: token, head, mlp, neuron, norm or answer.
        layer: -1 for tokens; the answer is one above the last.
        column: The position it stands at, in words: ``-1``, ``-5``.
        place: Of the column among the columns, from the left.
        start: Whether the circuit was asked for it.
        neuron: The page of the neuron, or "".
    """

    id: str
    label: str
    kind: Literal["token", "head", "mlp", "neuron", "norm", "answer"]
    layer: int
    column: str
    place: int
    start: bool = False
    neuron: str = ""


@dataclass(frozen=True)
class GraphEdge:
    """An edge of a circuit; effects are (target when the edge alone is corrupted) - clean."""

    sender: str
    receiver: str
    channel: str
    target: str
    verdict: str
    effect: float
    low: float | None
    high: float | None
    share: float | None
    q: float | None


@dataclass(frozen=True)
class Graph:
    """A circuit.

    Attributes:
        anchor: ``circuit-L28N907``.
        unit: Of the effects, by target.
        sign: What a negative effect says, in a sentence.
        card: As it is printed.
    """

    anchor: str
    title: str
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    unit: Mapping[str, str]
    sign: str
    card: str
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: Task on model.
        found: What was found, in sentences; "nothing" is one of them.
        asked: Task, metrics, site, position, seed, options.
        data: Splits, their sizes and groups; the model, its layers and neurons.
        attrition: From all neurons down to the causal ones; empty where none were scored.
        grades: How many associated neurons have each grade, with the grade's meaning.
        caveats: What a reader must know before quoting a number.
        missing: What the report could not show, and the command that would make it.
        columns, rows: The table of associated neurons.
        n_rows: How many rows there are, where ``rows`` are the first of them; 0: these are all.
        every: Of all neurons, where scores are there.
        reproduce: The commands, in their order.
        versions: Of the packages, the model's fingerprint, the examples' hash.
    """

    title: str
    found: tuple[str, ...]
    asked: tuple[Fact, ...]
    data: tuple[Fact, ...]
    attrition: tuple[Step, ...] = ()
    grades: tuple[Fact, ...] = ()
    caveats: tuple[str, ...] = ()
    missing: tuple[Fact, ...] = ()
    pictures: tuple[Picture, ...] = ()
    cards: tuple[Card, ...] = ()
    columns: tuple[ColumnSpec, ...] = ()
    rows: tuple[Mapping[str, Cell], ...] = ()
    n_rows: int = 0
    every: EveryNeuron | None = None
    neurons: tuple[NeuronPage, ...] = ()
    circuits: tuple[Graph, ...] = ()
    reproduce: tuple[str, ...] = ()
    versions: tuple[Fact, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
