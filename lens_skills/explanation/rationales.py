"""`rationales`: the smallest span that each answer hangs on, and what neurons do there.

The span whose corruption flips the answer; and what ablation does at it and at other tokens.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, logit_diff
from lens_skills.activations.components import parse_components, sites_of
from lens_skills.activations.forward import Encoded, RequiredOutputs, forward_batch, prepare
from lens_skills.activations.halved_batches import HalvedBatches
from lens_skills.activations.stream import batches
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effects import measure_effects
from lens_skills.models import ModelAdapter, as_adapter
from lens_skills.progress import Progress
from lens_skills.results import Result, provenance
from lens_skills.stats.effect_tests import FEWEST_GROUPS, ClusteredRatio, ratio_interval

CORRUPTIONS = ("auto", "twin", "donors")


@dataclass(frozen=True, eq=False)
class Rationales(Result):
    """The rationale of each example, and what neurons do there.

    Attributes:
        table: One row per example: id group margin (log-odds of answer against foil, nats), then of
            its rationale start (place among the prompt's tokens, from 0) length text and
            corrupted_margin; length 0 where no span flips the answer or it was wrong already. With
            neurons also effect and matched_effect: edited minus clean margin, at the rationale and
            at matched tokens (their mean); NaN where there are none.
        corruption: What stands in a span's place: ``"twin"`` or ``"donors"``.
        longest: Tokens of the longest span that was tried.
        neurons: Names of the ablated ones; none where none were asked for.
        do: The edit in words.
        ratio, low, high: Mean |effect| at the rationale over that at matched tokens, with its 95 %
            interval over groups (infinite where nothing moves there); NaN without neurons.
        n_ablated: On how many examples.
        provenance: Model, task.
    """

    table: pd.DataFrame
    corruption: str
    longest: int
    neurons: tuple[str, ...] = ()
    do: str = ""
    ratio: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    n_ablated: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per example, as in ``table``."""
        return self.table.copy()

    def __repr__(self) -> str:
        table: Any = self.table
        right, flipped = table["margin"] > 0, table[table["length"] > 0]
        words = {
            "twin": "the corrupted twin's tokens",
            "donors": "tokens of examples with another answer, most draws",
        }
        lines = [
            f"rationales of {int(right.sum()):,} right answers of {len(self.table):,} examples",
            f"  {len(flipped):,} flip by a span of up to {self.longest} tokens, in whose place "
            f"stand {words[self.corruption]}",
        ]
        lengths = flipped["length"].value_counts().sort_index()
        sizes = ", ".join(f"{n:,} of {size}" for size, n in lengths.items())
        common = flipped["text"].value_counts().head(5)
        lines.append(
            f"  tokens of the smallest: {sizes}; most often {', '.join(map(repr, common.index))}"
        )
        if self.neurons:
            part = table[table["matched_effect"].notna()]
            at, there = part["effect"], part["matched_effect"]
            size = f"{len(self.neurons)} neuron" + "s" * (len(self.neurons) > 1)
            lines += [
                f"  {self.do} of {size}: the margin moves {at.mean():+.3g} nats (|·| "
                f"{at.abs().mean():.3g}) at the rationale, {there.mean():+.3g} (|·| "
                f"{there.abs().mean():.3g}) at as many other tokens nearby",
                f"  ratio of the sizes {self.ratio:.3g} [{self.low:.3g}, {self.high:.3g}] · "
                f"{self.n_ablated:,} examples in {part['group'].nunique():,} groups",
            ]
        lines.append(
            "  smallest for this corruption; that the neurons are special takes other neurons at "
            "the same tokens"
        )
        return "\n".join(lines)


def rationales(
    model: Any,
    examples: Sequence[Example],
    neurons: Any = None,
    *,
    do: Edit | None = None,
    corruption: str = "auto",
    n_draws: int = 4,
    longest: int = 4,
    at: str = DEFAULT_SITE,
    seed: int = 0,
) -> Rationales:
    """The smallest span of each prompt whose corruption flips the answer; ablation at it.

    Every contiguous span of one token is tried, then of two, and so on: the first length at which
    a span flips the sign of the margin is the smallest, and of several spans of it that which
    moves the margin furthest is taken. Only right answers (a margin above 0) are searched.

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: With an answer and a foil (or options).
        neurons: To ablate at the rationale, and at matched tokens; None: none.
        do: The edit, such as ``ls.ablate("mean", over=explore)``; means are then over all tokens
            of that split, so that the same number stands in for any token.
        corruption: ``"twin"``: the corrupted twin's tokens at the span's places; twins must have
            as many tokens. ``"donors"``: the tokens at the same distance from the end of examples
            with another answer, of another group where there are such, at least as long; flipped
            where more than half of the draws flip. ``"auto"``: twins where all examples have them.
        n_draws: Donors drawn for each example.
        longest: Tokens of the longest span.
        at: The site of the neurons.
        seed: Of the donors, and of the edit.

    Matched tokens are spans of the same length that do not overlap the rationale, nearest to it in
    distance to the end, one before and one after where there are both; the last token, where the
    answer is read, only where the rationale holds it.

    Raises:
        LensSkillsError: Examples without foil or twin, or twins of another length; no right
            answer; no span of up to ``longest`` tokens that flips any; neurons without an edit, or
            rationales in fewer than `FEWEST_GROUPS` groups to ablate at.

    Source: after few-shot rationale extraction (arXiv 2109.08259), where a student is trained to
    point at words. Here nothing is trained: a rationale is what the studied model's own answer
    hangs on.
    Does not show: that other tokens do not matter together; nor, by its ratio alone, that these
    neurons do more at the rationale than any others would.

    >>> import lens_skills as ls
    >>> model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic("+", n=40)
    >>> found = ls.rationales(model, task, longest=2)
    >>> set(found.frame()["length"]) <= {0, 1, 2}
    True
    """
    if corruption not in CORRUPTIONS:
        raise LensSkillsError(
            f"no corruption {corruption!r}. Choose {', '.join(map(repr, CORRUPTIONS))}."
        )
    if longest < 1 or n_draws < 1:
        raise LensSkillsError(f"longest={longest}, n_draws={n_draws}: 1 is the least of either.")
    if neurons is not None and do is None:
        raise LensSkillsError(
            "neurons are ablated at the rationale by an edit: do=ls.ablate('mean', over=explore)."
        )
    adapter = as_adapter(model)
    metric = logit_diff()
    encoded, plan = prepare(adapter, examples, [metric])
    margin = _margins(adapter, encoded, plan)
    searched = [place for place, value in enumerate(margin.tolist()) if value > 0]
    if not searched:
        raise LensSkillsError(
            f"the model answers none of {len(examples)} examples right (answer over foil), so no "
            "answer can be flipped. `preflight` says whether it has the skill."
        )
    sources, kind = _sources(adapter, examples, encoded, searched, corruption, n_draws, seed)
    spans = _smallest(adapter, encoded, plan, sources, longest)
    if not spans:
        raise LensSkillsError(
            f"no span of up to {longest} tokens flips any of {len(sources)} right answers "
            f"({kind}). Allow longer ones, longest={longest * 2}, or another corruption."
        )
    rows = []
    for place, item in enumerate(encoded):
        start, length, corrupted = spans.get(place, (-1, 0, float("nan")))
        tokens = item.prompt_tokens[start : start + length].tolist() if length else []
        rows.append(
            {
                "id": item.id,
                "group": item.group,
                "margin": float(margin[place]),
                "start": start,
                "length": length,
                "text": adapter.tokenizer.decode(tokens) if tokens else "",
                "corrupted_margin": corrupted,
            }
        )
    found = Rationales(
        table=pd.DataFrame(rows),
        corruption=kind,
        longest=longest,
        provenance={**provenance(examples, adapter), "seed": seed, "n_draws": n_draws},
    )
    if neurons is None:
        return found
    assert do is not None
    return _ablated(adapter, examples, encoded, found, neurons, do, at=at, seed=seed)


def _margins(
    adapter: ModelAdapter, encoded: Sequence[Encoded], plan: RequiredOutputs
) -> Float[Tensor, " example"]:
    """The margin of each prompt, in their order."""
    items = [replace(item, index=place) for place, item in enumerate(encoded)]
    metric, values = logit_diff(), torch.zeros(len(items), dtype=torch.float64)
    halves = HalvedBatches(adapter.device)

    def read(part: Sequence[Encoded]) -> Tensor:
        return forward_batch(adapter, part, plan, [metric], {}, {})[metric.name].double()

    for batch in batches(items, plan, "rationales", progress=False):
        values[[item.index for item in batch]] = torch.cat(halves.run(batch, read))
    return values


Source = np.ndarray
"""The tokens that stand in for a prompt's own, as many as it has."""


def _sources(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    searched: Sequence[int],
    corruption: str,
    n_draws: int,
    seed: int,
) -> tuple[dict[int, list[Source]], str]:
    """What may stand in for each searched prompt's tokens, and of which kind that is."""
    without = [examples[place].id for place in searched if examples[place].corrupted is None]
    if corruption == "twin" and without:
        raise LensSkillsError(
            f"example {without[0]!r} has no corrupted twin ({len(without)} of {len(searched)} lack "
            "one). Say corruption='donors'."
        )
    if corruption != "donors" and not without:
        asked = [replace(examples[k], prompt=str(examples[k].corrupted)) for k in searched]
        twins, _ = prepare(adapter, asked, [logit_diff()])
        pairs = list(zip(searched, twins, strict=True))
        uneven = [k for k, t in pairs if len(t.prompt_tokens) != len(encoded[k].prompt_tokens)]
        if not uneven:
            return {k: [twin.prompt_tokens] for k, twin in pairs}, "twin"
        if corruption == "twin":
            raise LensSkillsError(
                f"the twin of {examples[uneven[0]].id!r} has another number of tokens "
                f"({len(uneven)} of {len(searched)} have): places do not correspond. Say "
                "corruption='donors', or keep `equal_length_pairs`."
            )
    found: dict[int, list[Source]] = {}
    for place in searched:
        item = encoded[place]
        others = [
            other
            for other in encoded
            if other.answer != item.answer and len(other.prompt_tokens) >= len(item.prompt_tokens)
        ]
        others = [other for other in others if other.group != item.group] or others
        if not others:
            continue
        random = np.random.default_rng([seed, place])
        drawn = random.choice(len(others), size=min(n_draws, len(others)), replace=False)
        first = 1 if item.has_bos else 0
        sources = []
        for which in drawn.tolist():
            tokens = others[which].prompt_tokens[-len(item.prompt_tokens) :].copy()
            tokens[:first] = item.prompt_tokens[:first]
            sources.append(tokens)
        found[place] = sources
    if not found:
        raise LensSkillsError(
            "no example has another answer and as many tokens, so there is nothing to corrupt "
            "with. Give examples with different answers, or twins."
        )
    return found, "donors"


def _smallest(
    adapter: ModelAdapter,
    encoded: Sequence[Encoded],
    plan: RequiredOutputs,
    sources: dict[int, list[Source]],
    longest: int,
) -> dict[int, tuple[int, int, float]]:
    """Start, length and mean corrupted margin of each example's smallest flipping span."""
    found: dict[int, tuple[int, int, float]] = {}
    known: dict[tuple[int, bytes], float] = {}
    with Progress(longest, "rationales", "lengths of spans") as bar:
        for length in range(1, longest + 1):
            asked: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
            texts: dict[tuple[int, bytes], Encoded] = {}
            for place in sources.keys() - found.keys():
                item = encoded[place]
                for start in range(1 if item.has_bos else 0, len(item.prompt_tokens) - length + 1):
                    for source in sources[place]:
                        tokens = item.prompt_tokens.copy()
                        tokens[start : start + length] = source[start : start + length]
                        key = (place, tokens.tobytes())
                        asked.setdefault((place, start), []).append(key)
                        if key not in known:
                            texts[key] = replace(item, prompt_tokens=tokens)
            if texts:
                values = _margins(adapter, list(texts.values()), plan)
                known |= dict(zip(texts, values.tolist(), strict=True))
            for (place, start), keys in sorted(asked.items()):
                margins = [known[key] for key in keys]
                flipped = sum(value < 0 for value in margins) > len(margins) / 2
                mean = sum(margins) / len(margins)
                if flipped and (place not in found or mean < found[place][2]):
                    found[place] = (start, length, mean)
            bar.update()
    return found


def matched_spans(start: int, length: int, first: int, n_tokens: int) -> list[int]:
    """Where spans of the same length begin that are nearest to one and do not overlap it.

    One before and one after where there are both; none at the last token unless it is in the span.

    >>> matched_spans(3, 1, first=1, n_tokens=8), matched_spans(1, 2, first=1, n_tokens=6)
    ([2, 4], [3])
    """
    end = n_tokens if start + length == n_tokens else n_tokens - 1
    before, after = start - length, start + length
    return [place for place in (before, after) if first <= place and place + length <= end]


def _ablated(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    found: Rationales,
    neurons: Any,
    do: Edit,
    *,
    at: str,
    seed: int,
) -> Rationales:
    """The rationales with the effect of an edit at them and at matched tokens."""
    units = tuple(parse_components(adapter, neurons, at=at))
    if not units:
        raise LensSkillsError("no neurons to ablate: none were named.")
    table: Any = found.table.copy()
    here: dict[int, tuple[int, int]] = {}
    there: dict[int, list[tuple[int, int]]] = {}
    for place, item in enumerate(encoded):
        start, length = (int(table[name][place]) for name in ("start", "length"))
        first, n_tokens = 1 if item.has_bos else 0, len(item.prompt_tokens)
        spots = matched_spans(start, length, first, n_tokens) if length else []
        if spots:
            # From the end, as the edit counts places.
            here[place] = (start - n_tokens, length)
            there[place] = [(spot - n_tokens, length) for spot in spots]
    groups = [examples[place].group for place in here]
    if len(set(groups)) < FEWEST_GROUPS:
        raise LensSkillsError(
            f"rationales with other tokens to compare are in {len(set(groups))} groups: "
            f"{FEWEST_GROUPS} at least are needed for an interval. Give more examples, or leave "
            "neurons out."
        )
    do = do.with_baseline(adapter, list(sites_of(units)), position="all", answers=True)
    wanted = set(here.items())
    wanted |= {(place, span) for place, spans in there.items() for span in spans}
    effects = _effects(adapter, examples, units, do, wanted, seed)
    own = torch.tensor([effects[place, span] for place, span in here.items()])
    other = torch.tensor(
        [float(np.mean([effects[place, span] for span in there[place]])) for place in here]
    )
    # Sizes before the mean over spans, so that those of opposite signs do not cancel.
    size = torch.tensor(
        [float(np.mean([abs(effects[place, span]) for span in there[place]])) for place in here]
    )
    table["effect"] = pd.Series(own.numpy(), index=list(here)).reindex(table.index)
    table["matched_effect"] = pd.Series(other.numpy(), index=list(here)).reindex(table.index)
    if float(own.abs().mean() + size.mean()) <= 0:
        raise LensSkillsError(
            "the edit moves the margin nowhere, so there is no ratio. Take more neurons, or an "
            "edit that removes more."
        )
    # The share of the sizes that the rationale has is bounded, and so is its interval where nearly
    # nothing moves at matched tokens; the ratio is s / (1 - s).
    parts = own.abs()[None].double(), (own.abs() + size)[None].double()
    share = ClusteredRatio.of(*parts, groups).value
    low, high = ratio_interval(*parts, groups, seed=seed)
    ends = [float(end.clamp(0, 1)) for end in (share, low, high)]
    ratio, low, high = (end / (1 - end) if end < 1 else float("inf") for end in ends)
    return replace(
        found,
        table=table,
        neurons=tuple(unit.name for unit in units),
        do=do.name,
        ratio=ratio,
        low=low,
        high=high,
        n_ablated=len(here),
    )


def _effects(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    units: tuple[Any, ...],
    do: Edit,
    wanted: Iterable[tuple[int, tuple[int, int]]],
    seed: int,
) -> dict[tuple[int, tuple[int, int]], float]:
    """The effect of the edit on each example at each span, which is counted from the end."""
    by_span: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for place, span in sorted(wanted):
        by_span[span].append(place)
    found: dict[tuple[int, tuple[int, int]], float] = {}
    with Progress(len(by_span), "rationales", "places of spans") as bar:
        for (start, length), places in by_span.items():
            measured = measure_effects(
                adapter,
                [examples[place] for place in places],
                [units],
                do,
                metric=logit_diff(),
                position=list(range(start, start + length)),
                names=["the neurons"],
                seed=seed,
            )
            for place, value in zip(places, measured.total[0].tolist(), strict=True):
                found[place, (start, length)] = value
            bar.update()
    return found
