"""Where to read: a hook point in some layers, at tokens of the prompt.

A `Site` is a hook point and its layers; a `Position` is one token, several, a span of text, or all
of them, pooled or not.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.forward import Encoded
from lens_skills.errors import LensSkillsError


@dataclass(frozen=True)
class Span:
    """A piece of the prompt: given as text, or as the column that holds each example's text."""

    text: str | None = None
    column: str | None = None
    take: Literal["last", "first", "mean"] = "last"

    def __str__(self) -> str:
        return f"span({self.text or 'column:' + str(self.column)}, {self.take})"


@dataclass(frozen=True, eq=False, repr=False)
class Count:
    """The number of tokens whose activation is above a threshold.

    Attributes:
        theta: The threshold of every neuron, in units of activation; None where each has its own.
        over: The piece of text whose tokens are counted; None: the whole prompt.
        site: The hook point that ``thresholds`` belong to.
        thresholds: By layer, one for each neuron.
        name: What tells these thresholds from others.
        fitted_on: Ids and groups of the examples that ``thresholds`` were chosen on.
    """

    theta: float | None
    over: Span | None = None
    site: str = ""
    thresholds: Mapping[int, Float[Tensor, " neuron"]] | None = None
    name: str = ""
    fitted_on: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())

    def __str__(self) -> str:
        what = f"fitted {self.name}" if self.theta is None else _number(self.theta)
        return f"count({what})" if self.over is None else f"count({what}, {_piece(self.over)})"

    __repr__ = __str__

    def of(self, site: str, layer: int) -> float | Float[Tensor, " neuron"]:
        """The threshold in one layer, or that of each of its neurons.

        Raises:
            LensSkillsError: Thresholds of another hook point, or of other layers.
        """
        if self.thresholds is None:
            assert self.theta is not None
            return self.theta
        if site != self.site or layer not in self.thresholds:
            raise LensSkillsError(
                f"{self} was fitted at {self.site} in layers {sorted(self.thresholds)}, not at "
                f"{site} in layer {layer}. Fit it there: ls.fit_count(…, at=…, layers=…)."
            )
        return self.thresholds[layer]


def count(theta: float, over: Span | None = None) -> Count:
    """The read-out that counts: how many tokens of the prompt a neuron is above ``theta`` at.

    It stands where ``"mean"`` and ``"max"`` do (``position=`` of `score`, `rank`, `capture`, …; in
    the shell ``--position "count(0.5)"``), and gives a whole number from 0 to the number of tokens.
    The first, special token is left out, as it is of those. Like them it is no place in the
    network, so edits refuse it.

    Args:
        theta: The threshold, in units of activation; of `fit_count`: one for each neuron.
        over: Count in this piece of text only: all tokens of ``span(…)``, whatever it takes.

    Raises:
        LensSkillsError: A threshold that is no finite number. When read: a threshold that no token
            of any example crosses.

    Source: an analogue of the multi-spike read-out, whose output is the number of crossings of a
    threshold (arXiv 2005.00723). There the thresholds are learned and a spike resets the unit;
    here the network is as it was, and tokens are counted.

    Does not show: that anything later in the network counts. A low threshold counts tokens, so
    partial out the length (``given=``) where it goes with the metric.

    >>> str(count(0.5)), str(count(1, span("keys")))
    ('count(0.5)', 'count(1, keys)')
    """
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not math.isfinite(theta):
        raise LensSkillsError(f"count takes a finite number as threshold, not {theta!r}.")
    return Count(float(theta), over)


def _number(theta: float) -> str:
    return repr(theta).removesuffix(".0")


def _piece(over: Span) -> str:
    return over.text or f"column:{over.column}"


Position = str | int | Span | Count | Sequence[str | int | Span]


def span(
    text: str | None = None,
    *,
    column: str | None = None,
    take: Literal["last", "first", "mean"] = "last",
) -> Span:
    """The position of a piece of text: its last (or first) token, or the mean over its tokens.

    Args:
        text: The piece itself, the same for all examples; its last occurrence in the prompt counts.
        column: Instead: the label or covariate that holds each example's piece.
        take: Which token of the piece, or their mean.

    >>> str(span("keys"))
    'span(keys, last)'
    """
    if (text is None) == (column is None):
        raise LensSkillsError("span takes either text or column=, not both and not neither.")
    if take not in ("last", "first", "mean"):
        raise LensSkillsError(f"span cannot take {take!r}. Choose 'last', 'first' or 'mean'.")
    return Span(text, column, take)


@dataclass(frozen=True)
class PositionSpec:
    """A resolved position: its labels and how its tokens are pooled.

    Attributes:
        spots: One entry per position read.
        pool: How the tokens of a spot become one number (None: a spot is a single token).
        ragged: Whether every token is kept (position ``"all"``).
    """

    spots: tuple[str | int | Span | Count, ...]
    pool: Literal["mean", "max", "count"] | None
    ragged: bool
    several: bool

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(str(spot) for spot in self.spots)


def parse_position(position: Position) -> PositionSpec:
    """What a position means, or an error that lists what it can be.

    >>> parse_position("last").labels
    ('last',)
    """
    if isinstance(position, (list, tuple)):
        if not position:
            raise LensSkillsError("position is an empty list. Name at least one.")
        inner = [parse_position(spot) for spot in position]
        if any(reading.pool or reading.ragged for reading in inner):
            raise LensSkillsError(
                "a list of positions holds single tokens only ('last', indices, spans that take "
                "one token); 'mean', 'max', 'all' and count(…) stand alone."
            )
        return PositionSpec(tuple(r.spots[0] for r in inner), None, False, True)
    if isinstance(position, Span):
        pool = "mean" if position.take == "mean" else None
        return PositionSpec((position,), pool, False, False)
    if isinstance(position, str) and position.startswith("count"):
        position = _counted(position)
    if isinstance(position, Count):
        return PositionSpec((position,), "count", False, False)
    if isinstance(position, bool) or not isinstance(position, (int, str)):
        raise LensSkillsError(f"position {position!r} is none of: {_CHOICES}.")
    if isinstance(position, int) or position == "last":
        return PositionSpec((position,), None, False, False)
    if position in ("mean", "max"):
        return PositionSpec((position,), "mean" if position == "mean" else "max", False, False)
    if position == "all":
        return PositionSpec((position,), None, True, False)
    if position.lstrip("-").isdigit():
        return PositionSpec((int(position),), None, False, False)
    raise LensSkillsError(f"no position {position!r}. Choose {_CHOICES}.")


_CHOICES = (
    "'last', an index (0 is the first token, -1 the last), span('text'), 'all', 'mean', 'max', "
    "count(0.5), 'prompt' (with a soft prompt), or a list of single tokens"
)


def _counted(text: str) -> Count:
    """What ``count(0.5)`` says as a text.

    Raises:
        LensSkillsError: Another text; thresholds that its name does not hold.
    """
    if re.match(r"count\(fitted |count\([^,)]+, ", text):
        raise LensSkillsError(
            f"the position {text!r} cannot be made from its name: give what ls.fit_count(…) or "
            "ls.count(…) returned."
        )
    found = re.fullmatch(r"count\(([^()]*)\)", text)
    try:
        return count(float(found[1] if found else "none"))
    except ValueError:
        raise LensSkillsError(
            f"position {text!r}: say count(THETA) with a number, as in count(0.5)."
        ) from None


def soft_position(adapter: Any, position: Position | None) -> Position:
    """The position asked for; ``"prompt"`` (None, with a soft prompt) is each of its vectors.

    Vectors after the input are counted from the end, so the last one is ``-1``.

    Raises:
        LensSkillsError: No soft prompt, or one that stands before the input only.
    """
    n_after = len(adapter.words_after)
    if position is None:
        position = "last" if adapter.soft is None else "prompt"
    if position != "prompt":
        return position
    if adapter.soft is None:
        raise LensSkillsError(
            "position='prompt' reads a soft prompt's vectors, but none was given: prompt=…"
        )
    if n_after == 0:
        raise LensSkillsError(
            "the soft prompt stands before the input only. Attention looks back, so its "
            "activations are the same for every example and no metric can correlate with them. "
            "Train one with a suffix (fit_prompt's n_tokens), or read another position."
        )
    return list(range(-n_after, 0))


def token_places(adapter: Any, encoded: Encoded, spot: str | int | Span | Count) -> list[int]:
    """The prompt tokens a spot covers, as indices from the prompt's start.

    The beginning-of-sequence token is left out of ``mean``, ``max``, ``all`` and counts: it is no
    part of the text, and its activations are the largest of all.

    Raises:
        LensSkillsError: A position outside the prompt, a text it does not contain, or one whose
            tokens hold letters of other words too.
    """
    n_tokens = len(encoded.prompt_tokens)
    if spot == "last":
        return [n_tokens - 1]
    if isinstance(spot, int):
        if not -n_tokens <= spot < n_tokens:
            raise LensSkillsError(
                f"position {spot} is outside the prompt of example {encoded.id!r}, which has "
                f"{n_tokens} tokens."
            )
        return [spot % n_tokens]
    if isinstance(spot, Span):
        places = _span_places(adapter, encoded, spot)
        return {"last": places[-1:], "first": places[:1], "mean": places}[spot.take]
    if isinstance(spot, Count) and spot.over is not None:
        return _span_places(adapter, encoded, spot.over)
    return list(range(1 if encoded.has_bos else 0, n_tokens))


def _span_places(adapter: Any, encoded: Encoded, spot: Span) -> list[int]:
    text = spot.text
    if spot.column is not None:
        value = encoded.example.column(spot.column)
        text = None if value is None else str(value)
    places: list[int] = []
    if text and adapter.chat:
        # In the user's own words, never in the template's.
        places = adapter.places_in_turn(encoded.prompt, text)
    elif text:
        places = _decoded_places(adapter, encoded, text)
    if not places:
        raise LensSkillsError(
            f"the span {text!r} does not occur in the prompt of example {encoded.id!r}: "
            f"{encoded.prompt!r}."
        )
    bos = 1 if encoded.has_bos else 0
    return [place if place < bos else place + encoded.n_before for place in places]


def _decoded_places(adapter: Any, encoded: Encoded, text: str) -> list[int]:
    """The tokens of the last occurrence of a text, the soft prompt's not counted."""
    # Decoding ever longer beginnings gives each token's end, whatever the tokenizer merges.
    bos = 1 if encoded.has_bos else 0
    end_of_text = len(encoded.prompt_tokens) - encoded.n_after
    tokens = [
        *encoded.prompt_tokens[:bos].tolist(),
        *encoded.prompt_tokens[bos + encoded.n_before : end_of_text].tolist(),
    ]
    ends = [len(adapter.tokenizer.decode(tokens[: end + 1])) for end in range(len(tokens))]
    whole = adapter.tokenizer.decode(tokens)
    start = whole.rfind(text)
    begins = [0, *ends[:-1]]
    places = [
        place
        for place, (begin, end) in enumerate(zip(begins, ends, strict=True))
        if start >= 0 and begin < start + len(text) and end > start
    ]
    if places:
        first, last = begins[places[0]], ends[places[-1]]
        before, after = whole[first:start], whole[start + len(text) : last]
        if any(letter.isalnum() for letter in before + after):
            raise LensSkillsError(
                f"the tokenizer joins the span {text!r} with other letters: in the prompt of "
                f"example {encoded.id!r} it reads {whole[first:last]!r}, whose activations are "
                "those of both. Name the whole piece, or read another position."
            )
    return places


DEFAULT_SITE = "mlp.hook_post"
FEATURES = "features"
"""The site that the features of a dictionary are, unless they were given another name."""


@dataclass(frozen=True)
class Site:
    """A kind of hook point and the layers it is read in.

    Attributes:
        name: Without block and layer, e.g. ``"mlp.hook_post"``.
        layers: Layer indices in ascending order.
    """

    name: str
    layers: tuple[int, ...]

    def hook_name(self, layer: int) -> str:
        """The full name of the hook point in one layer.

        >>> Site("mlp.hook_post", (0, 1)).hook_name(1)
        'blocks.1.mlp.hook_post'
        """
        return f"blocks.{layer}.{self.name}"


def find_site(adapter: Any, at: str, layers: int | Iterable[int] | None = None) -> Site:
    """The site called ``at`` in this model.

    Args:
        adapter: The model.
        at: ``"mlp.hook_post"``, ``"hook_resid_post"``, …, or a full name with its layer
            (``"blocks.3.mlp.hook_post"``).
        layers: Which layers (default all); negative ones count from the end.

    Raises:
        LensSkillsError: An unknown hook point (with the nearest names) or layer.
    """
    full = re.fullmatch(r"blocks\.(\d+)\.(.+)", at)
    if full and layers is None:
        at, layers = full[2], int(full[1])
    if layers is None and (held := adapter.dictionaries_at(at)):
        layers = held
    chosen = _layers(adapter, layers)
    site = Site(at, chosen)
    known = set(adapter.hook_names())
    missing = [layer for layer in chosen if site.hook_name(layer) not in known]
    adapter.check_site(at, chosen)
    if missing:
        raise LensSkillsError(_unknown(at, known, missing, len(chosen)))
    return site


def site_names(hook_names: Iterable[str]) -> list[str]:
    """The kinds of hook point among full names, sorted.

    >>> site_names(["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "hook_embed"])
    ['mlp.hook_post']
    """
    matches = (re.fullmatch(r"blocks\.\d+\.(.+)", name) for name in hook_names)
    return sorted({match[1] for match in matches if match})


def _layers(adapter: Any, layers: int | Iterable[int] | None) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(adapter.n_layers))
    wanted: Sequence[int] = [layers] if isinstance(layers, int) else list(layers)
    wrong = [layer for layer in wanted if not -adapter.n_layers <= layer < adapter.n_layers]
    if wrong or not wanted:
        raise LensSkillsError(f"no layer {wrong} in a model of {adapter.n_layers} layers.")
    return tuple(sorted({layer % adapter.n_layers for layer in wanted}))


def _unknown(at: str, known: set[str], missing: list[int], n_layers: int) -> str:
    if 0 < len(missing) < n_layers:
        return f"the hook point {at!r} is missing in layers {missing} of this model."
    if at == FEATURES:
        return (
            "this model is read without a dictionary, so it has no features to name: "
            "model = ls.with_features(model, ls.load_dictionary('its/folder'))."
        )
    names = site_names(known)
    near = difflib.get_close_matches(at, names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return (
        f"no hook point {at!r} in this model's blocks.{hint} "
        f"`lens-skills models --hooks` lists all {len(names)}."
    )


def edited_positions(position: Position) -> PositionSpec:
    """A position that can be edited: single tokens, or ``"all"``.

    Raises:
        LensSkillsError: A pooled position: a mean or a number of tokens is no place in the network.
    """
    reading = parse_position(position)
    if reading.pool:
        raise LensSkillsError(
            f"position {reading.labels[0]!r} pools tokens, and a pooled number cannot be edited. "
            "Choose 'last', an index, span('text'), a list of those, or 'all'."
        )
    return reading


def position_labels(position: Position) -> tuple[str, ...]:
    """The labels of the edited positions; ``-1`` is the last token like ``"last"``.

    >>> position_labels([-1, 0])
    ('last', '0')
    """
    return tuple(map(_plain, edited_positions(position).labels))


def _plain(label: str) -> str:
    return "last" if label == "-1" else label
