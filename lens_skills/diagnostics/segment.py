"""`segment`: where in a text one skill ends and the next begins, by what neurons do at each token.

A mean and a spread of every neuron per skill, a price for every boundary, and the cheapest cuts;
beside cuts of equal length, random cuts, each token for itself, and random neurons.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, stream
from lens_skills.activations.components import neuron_names, parse_neurons, site_of
from lens_skills.activations.locations import find_site
from lens_skills.diagnostics.labelled_texts import (
    LabelledTokens,
    check_skills,
    label_tokens,
    read_texts,
    refuse_shared,
)
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import random_neurons
from lens_skills.models import ModelAdapter, as_adapter
from lens_skills.progress import progress
from lens_skills.results import Result, provenance
from lens_skills.stats.effect_tests import FEW_GROUPS, FEWEST_GROUPS, cluster_interval
from lens_skills.stats.segmentation import Runs, boundary_f1, cheapest_runs, gaussian_cost

Text = str | Sequence[tuple[str, str]]
"""A text to cut; with its pieces as (skill, words) where they are known."""

TOLERANCE = 1
FLOOR = 0.1
"""A neuron's spread within a skill is at least this share of its spread over all tokens."""

N_PRICES = 30
_RANDOM_CUTS = 200
_BASELINES = {
    "equal": "cuts of equal length",
    "random": "random cuts",
    "argmax": "each token by itself",
}


@dataclass(frozen=True, eq=False)
class Segmentation(Result):
    """Texts cut into skills.

    Attributes:
        neurons: (layer, index) rows that were read.
        skills: The skills of the fit, in the order of their names.
        tokens: One row per token: ``text`` (its place), ``place`` (0 for the first token after a
            beginning-of-sequence one), ``token``, ``skill`` (of the segment it is in), ``begins``
            (whether a segment begins with it), ``alone`` (the likeliest skill of the token by
            itself), ``true`` and ``true_begins`` ("" and False where the pieces are not known).
        scores: One row per text whose pieces are known: ``text``, ``n_tokens``, ``n_true`` and
            ``n_found`` (boundaries), boundary F1 of ``found``, ``equal`` and ``random`` cuts (both
            are told how many boundaries there are) and of ``argmax``, and ``accuracy``: the share
            of tokens in a segment of their skill.
        random_f1: Mean boundary F1 of each set of random neurons, with a price of its own.
        price: Of a boundary, in nats.
        prices: Mean boundary F1 at every price tried on ``tune``; empty where the price was given.
        shortest, tolerance: Tokens of a segment at least; tokens a boundary may be off.
        n_fit, n_tune: Labelled texts that the neurons' means, and the price, are from.
        selected: Whether the neurons were chosen on ``fit``.
        site: Where they were read.
        provenance: Model, texts.
    """

    neurons: Int[Tensor, "neuron 2"]
    skills: tuple[str, ...]
    tokens: pd.DataFrame
    scores: pd.DataFrame
    random_f1: Float[Tensor, " draw"]
    price: float
    prices: pd.DataFrame
    shortest: int
    tolerance: int
    n_fit: int
    n_tune: int
    selected: bool
    site: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The neurons' names, such as ``L17N635``."""
        return neuron_names(self.neurons, self.site, self.provenance)

    @property
    def n_texts(self) -> int:
        """How many texts were cut."""
        return int(self.tokens.loc[:, "text"].nunique())

    def segments(self, text: int = 0) -> list[tuple[str, str]]:
        """One text as it was cut: (skill, words) pairs in order."""
        rows = self.tokens.loc[self.tokens["text"] == text]
        if not len(rows):
            raise LensSkillsError(f"no text {text}: there are {self.n_texts}, from 0.")
        runs = rows.groupby(rows["begins"].cumsum())
        return [(str(run["skill"].iloc[0]), "".join(run["token"])) for _, run in runs]

    def frame(self) -> pd.DataFrame:
        """What is compared: ``cuts``, mean ``f1`` with ``low`` and ``high`` over texts.

        And ``gain``, ``gain_low``, ``gain_high``: boundary F1 of the cuts found less theirs, text
        by text. Empty where no text's pieces are known, without intervals where fewer than
        eight texts' are.
        """
        return self._compared.copy()

    @cached_property
    def _compared(self) -> pd.DataFrame:
        columns = ["cuts", "f1", "low", "high", "gain", "gain_low", "gain_high"]
        if not len(self.scores):
            return pd.DataFrame(columns=columns)
        found = torch.tensor(self.scores["found"].to_numpy())
        rows = []
        for name in ("found", *_BASELINES):
            own = torch.tensor(self.scores[name].to_numpy())
            ends = [
                *_interval(own, 0.0),
                float((found - own).mean()),
                *_interval(found - own, -1.0),
            ]
            rows.append([name, float(own.mean()), *ends])
        return pd.DataFrame(rows, columns=columns)

    @property
    def word(self) -> str:
        """Whether the boundaries are found better than by length and by chance."""
        if not len(self.scores):
            return "the pieces of the texts are not known, so nothing is compared"
        rows = self._compared.set_index("cuts").loc[["equal", "random"]]
        if rows["gain_low"].isna().any():
            return f"undecided: an interval takes {FEWEST_GROUPS} labelled texts"
        if (rows["gain_low"] > 0).all():
            return "boundaries found better than by equal length and by chance"
        return "boundaries not found better than by equal length and by chance"

    def __repr__(self) -> str:
        whose = "chosen on the fit" if self.selected else "given"
        lines = [
            f"{self.n_texts:,} texts cut into {', '.join(self.skills)}: {self.word}",
            f"{len(self.neurons):,} neurons, {whose} · {self.site} at every token · means and "
            f"spreads from {self.n_fit:,} labelled texts",
        ]
        price = f"price of a boundary {self.price:.4g} nats, "
        price += (
            f"the best boundary F1 on {self.n_tune:,} other texts" if self.n_tune else "as given"
        )
        lines.append(f"{price} · segments of {self.shortest} tokens or more")
        if len(self.scores):
            lines.append(f"boundary F1 (± {self.tolerance} token), mean over texts [95 %]")
            for row in self._compared.to_dict("records"):
                label = _BASELINES.get(row["cuts"], "found")
                line = f"  {label:<23}{row['f1']:.2f} {_ends(row, '')}"
                if row["cuts"] != "found":
                    line += f"   found {row['gain']:+.2f} {_ends(row, 'gain_')}"
                lines.append(line)
            if len(self.random_f1):
                low, high = float(self.random_f1.min()), float(self.random_f1.max())
                lines.append(
                    f"  {'random neurons':<23}{float(self.random_f1.mean()):.2f} of these layers, "
                    f"{len(self.random_f1)} sets {low:.2f} to {high:.2f}"
                )
            lines.append(f"  tokens of the right skill: {self.scores['accuracy'].mean():.1%}")
            if len(self.scores) < FEW_GROUPS:
                lines.append(f"  fewer than {FEW_GROUPS} texts: the intervals are too narrow")
        else:
            for text in range(min(3, self.n_texts)):
                shown = [
                    f"[{skill}] {' '.join(words.split())}" for skill, words in self.segments(text)
                ]
                lines.append("  " + " ".join(shown))
        lines.append("  neurons are taken as independent given the skill, which they are not: the")
        lines.append("  price makes up for it. That the model uses them is not shown")
        return "\n".join(lines)


def _ends(row: Mapping[str, Any], which: str) -> str:
    low, high = row[f"{which}low"], row[f"{which}high"]
    return "" if pd.isna(low) else f"[{low:.2f}, {high:.2f}]"


def _interval(values: Float[Tensor, " text"], least: float) -> tuple[float, float]:
    if len(values) < FEWEST_GROUPS:
        return float("nan"), float("nan")
    low, high = cluster_interval(values, [str(place) for place in range(len(values))])
    return max(float(low), least), min(float(high), 1.0)


def segment(
    model: Any,
    texts: Sequence[Text],
    fit: Sequence[Text],
    *,
    tune: Sequence[Text] = (),
    neurons: Any = None,
    k: int = 50,
    price: float | None = None,
    shortest: int = 3,
    tolerance: int = TOLERANCE,
    n_random: int = 5,
    at: str = DEFAULT_SITE,
    seed: int = 0,
) -> Segmentation:
    """Texts cut into segments, each of one skill, where that is cheapest.

    A segment of skill z costs -Σ log N(a; m, s) over its tokens and the neurons, every boundary a
    price more. m and s are a neuron's mean and standard deviation over the tokens of skill z in
    ``fit`` (s at least `FLOOR` of the neuron's own over all tokens). The cheapest cuts are found
    exactly. The price is the one of `N_PRICES`, from 0 to where no text of ``tune`` is cut, with
    the largest mean boundary F1 there (of several, the middle one).

    Args:
        model: A model.
        texts: To be cut. A text, or (skill, words) pairs where the pieces are known, as
            `tasks.splice` makes them: then the cuts are compared with them.
        fit: Labelled texts, which m and s are from, and the neurons where none are named.
        tune: Other labelled texts, for the price.
        neurons: Names, rows or a `Selection`; a dict of those by skill, which are read together.
            None: the ``k`` whose means differ most between skills on ``fit`` (by F, of all neurons
            at the site).
        k: How many neurons to take where none are named.
        price: Of a boundary, in nats; where it is given, ``tune`` is not needed.
        shortest: Tokens of a segment at least.
        tolerance: Tokens by which a boundary may be off and still be right.
        n_random: Sets of as many random neurons of the same layers to cut with, for comparison.
        at: Where they are read, at every token but the beginning-of-sequence one.
        seed: Of the random cuts and neurons.

    Raises:
        LensSkillsError: A text shorter than a segment; fewer than two skills in ``fit``, or too
            few tokens of one; a skill that ``fit`` does not have; a neuron that does not vary;
            texts that share pieces with ``fit`` or ``tune``; neither price nor ``tune``.

    Does not show: that the model uses the neurons; nor that words alone would not do as well.

    Source: an analogue of Jiang et al. 2022, learning options via compression (arXiv 2212.04590),
    which learns skills from trajectories at the least description length. Here skills are known
    from labels, a boundary's price stands for the length of their description, and nothing is
    trained.

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> sums, products = (ls.tasks.arithmetic(op, digits=2, n=80) for op in "+*")
    >>> texts = ls.tasks.splice({"sums": sums, "products": products}, 40, pieces=2)
    >>> cut = ls.segment(model, texts[:10], texts[10:25], tune=texts[25:], k=8, n_random=1)
    >>> cut.skills, cut.n_texts
    (('products', 'sums'), 10)
    """
    _check_numbers(k=k, shortest=shortest, tolerance=tolerance, n_random=n_random, price=price)
    adapter = as_adapter(model)
    at = site_of(
        next(iter(neurons.values()), None) if isinstance(neurons, Mapping) else neurons, at
    )
    parts = {
        "fit": read_texts(fit, "fit", labelled=True),
        "tune": read_texts(tune, "tune", labelled=True) if len(tune) else [],
        "texts": read_texts(texts, "texts", labelled=False),
    }
    if price is None and not parts["tune"]:
        raise LensSkillsError(
            "no price of a boundary: give tune=, labelled texts to choose it on, or price= in nats."
        )
    skills = tuple(sorted({skill for text in parts["fit"] for skill, _ in text}))
    check_skills(parts, skills)
    refuse_shared(parts)
    tokens = {name: label_tokens(adapter, some, shortest) for name, some in parts.items()}
    if neurons is None:
        chosen = _most_different(adapter, tokens["fit"], skills, k, at)
    else:
        chosen = _rows(neurons, at, adapter.d_head)
    width = _width(adapter, tokens["fit"][0], at)
    sets = [chosen] + [
        random_neurons(chosen, len(chosen), width=width, seed=seed + draw)
        for draw in range(n_random)
    ]
    pool = torch.unique(torch.cat(sets), dim=0)
    place = {tuple(row): spot for spot, row in enumerate(pool.tolist())}
    read = {name: _read(adapter, some, pool, at) for name, some in tokens.items()}
    found: list[_Cuts] = []
    for number, rows in enumerate(progress(sets, len(sets), "segment", "sets of neurons")):
        columns = torch.tensor([place[tuple(row)] for row in rows.tolist()])
        own = {name: [values[:, columns] for values in some] for name, some in read.items()}
        if number == 0:
            _refuse_flat(torch.cat(own["fit"]), neuron_names(rows, at, {"d_head": adapter.d_head}))
        found.append(_cut(own, tokens, skills, price, shortest, tolerance))
    first = found[0]
    table = _token_table(tokens["texts"], first, skills)
    scores = _scores(tokens["texts"], first, skills, tolerance, seed)
    alone = [_mean_f1(tokens["texts"], cuts.runs, tolerance) for cuts in found[1:]]
    return Segmentation(
        neurons=chosen,
        skills=skills,
        tokens=table,
        scores=scores,
        random_f1=torch.tensor(alone if len(scores) else [], dtype=torch.float64),
        price=first.price,
        prices=first.prices,
        shortest=shortest,
        tolerance=tolerance,
        n_fit=len(parts["fit"]),
        n_tune=len(parts["tune"]) if price is None else 0,
        selected=neurons is None,
        site=at,
        provenance={
            **provenance([text.example for text in tokens["texts"]], adapter),
            "task": "texts of several skills",
            "d_head": adapter.d_head,
            "fit": provenance([text.example for text in tokens["fit"]])["examples"],
            "seed": seed,
        },
    )


def _check_numbers(**given: Any) -> None:
    for name, least in (("k", 1), ("shortest", 1), ("tolerance", 0), ("n_random", 0)):
        if given[name] < least:
            raise LensSkillsError(f"{name}={given[name]}: {least} is the least.")
    if given["price"] is not None and given["price"] < 0:
        raise LensSkillsError(f"price={given['price']}: a boundary costs 0 nats or more.")


def _read(
    adapter: ModelAdapter,
    texts: Sequence[LabelledTokens],
    rows: Int[Tensor, "neuron 2"],
    at: str,
) -> list[Float[Tensor, "_ neuron"]]:
    """What the neurons do at every token of each text."""
    if not texts:
        return []
    layers = rows[:, 0].unique().tolist()
    layer = torch.tensor([layers.index(one) for one in rows[:, 0].tolist()])
    values: list[Tensor] = [torch.zeros(0)] * len(texts)
    examples = [text.example for text in texts]
    for batch in stream(adapter, examples, at=at, position="all", layers=layers):
        assert batch.mask is not None
        acts = batch.activations.cpu()
        for row, index in enumerate(batch.index.tolist()):
            here = acts[row, batch.mask[row].cpu()]
            values[index] = here[:, layer, rows[:, 1]].double()
    return values


def _most_different(
    adapter: ModelAdapter, fit: Sequence[LabelledTokens], skills: Sequence[str], k: int, at: str
) -> Int[Tensor, "k 2"]:
    """The neurons of largest F between the skills' tokens, of one-way analysis of variance."""
    examples = [text.example for text in fit]
    count = torch.zeros(len(skills), dtype=torch.float64)
    shift = total = square = None
    for batch in stream(adapter, examples, at=at, position="all"):
        assert batch.mask is not None
        for row, index in enumerate(batch.index.tolist()):
            acts = batch.activations[row, batch.mask[row]].double().cpu()
            if shift is None or total is None or square is None:
                shift = acts.mean(0)
                total = torch.zeros(len(skills), *shift.shape, dtype=torch.float64)
                square = torch.zeros_like(total)
            codes = torch.tensor([skills.index(skill) for skill in fit[index].truth])
            total.index_add_(0, codes, acts - shift)
            square.index_add_(0, codes, (acts - shift) ** 2)
            count.index_add_(0, codes, torch.ones(len(codes), dtype=torch.float64))
    assert total is not None
    assert square is not None
    sizes = count[:, None, None]
    between = (total**2 / sizes).sum(0) - total.sum(0) ** 2 / count.sum()
    within = (square - total**2 / sizes).sum(0)
    ratio = torch.where(within > 1e-12 * square.sum(0), between / within, 0.0)
    n_layers, width = ratio.shape
    if k > n_layers * width:
        raise LensSkillsError(f"k={k:,}: the model has {n_layers * width:,} neurons at {at}.")
    best = rearrange(ratio, "layer neuron -> (layer neuron)").argsort(descending=True, stable=True)
    layers = torch.tensor(find_site(adapter, at, None).layers)
    return torch.stack([layers[best[:k] // width], best[:k] % width], dim=1)


def _rows(neurons: Any, at: str, d_head: int) -> Int[Tensor, "neuron 2"]:
    """The neurons as rows, each once, those of a dict together."""
    several = list(neurons.values()) if isinstance(neurons, Mapping) else [neurons]
    rows = [tuple(row) for some in several for row in parse_neurons(some, at, d_head).tolist()]
    if not rows:
        raise LensSkillsError("no neurons to cut by: name some, or leave neurons= out.")
    return torch.tensor(list(dict.fromkeys(rows)))


def _width(adapter: ModelAdapter, text: LabelledTokens, at: str) -> int:
    layer = find_site(adapter, at, None).layers[:1]
    batch = next(stream(adapter, [text.example], at=at, position="last", layers=layer))
    return int(batch.activations.shape[-1])


def _refuse_flat(values: Float[Tensor, "token neuron"], names: Sequence[str]) -> None:
    flat = values.std(0, correction=0) <= 1e-9 * values.abs().amax(0)
    if bool(flat.any()):
        which = [name for name, constant in zip(names, flat.tolist(), strict=True) if constant]
        more = f" and {len(which) - 1} more" if len(which) > 1 else ""
        raise LensSkillsError(
            f"{which[0]}{more} does the same at all {len(values):,} tokens of fit: nothing can be "
            "told by a neuron without variance. Leave it out."
        )


@dataclass(frozen=True)
class _Cuts:
    """How one set of neurons cuts the texts."""

    runs: list[Runs]
    alone: list[list[int]]
    price: float
    prices: pd.DataFrame


def _cut(
    values: Mapping[str, list[Float[Tensor, "_ neuron"]]],
    texts: Mapping[str, list[LabelledTokens]],
    skills: Sequence[str],
    price: float | None,
    shortest: int,
    tolerance: int,
) -> _Cuts:
    mean, spread = _moments(values["fit"], texts["fit"], skills)
    cost = {
        name: [gaussian_cost(one, mean, spread) for one in values[name]]
        for name in ("tune", "texts")
    }
    prices = pd.DataFrame({"price": [], "f1": []})
    if price is None:
        price, prices = _best_price(cost["tune"], texts["tune"], shortest, tolerance)
    return _Cuts(
        runs=[cheapest_runs(one, [price], shortest=shortest)[0] for one in cost["texts"]],
        alone=[one.argmin(1).tolist() for one in cost["texts"]],
        price=price,
        prices=prices,
    )


def _moments(
    values: list[Float[Tensor, "_ neuron"]],
    texts: Sequence[LabelledTokens],
    skills: Sequence[str],
) -> tuple[Float[Tensor, "skill neuron"], Float[Tensor, "skill neuron"]]:
    rows = torch.cat(values)
    truth = [skill for text in texts for skill in text.truth]
    means, spreads = [], []
    for skill in skills:
        own = rows[torch.tensor([one == skill for one in truth])]
        if len(own) < 2:
            raise LensSkillsError(
                f"fit has {len(own)} tokens of {skill!r}: a mean and a spread take 2 or more."
            )
        means.append(own.mean(0))
        spreads.append(own.std(0))
    least = FLOOR * rows.std(0)
    # Of random neurons, one may be the same at every token; then it tells nothing, at any spread.
    least = torch.where(least > 0, least, 1.0)
    return torch.stack(means), torch.stack(spreads).clamp(min=least)


def _best_price(
    cost: list[Float[Tensor, "_ skill"]],
    texts: Sequence[LabelledTokens],
    shortest: int,
    tolerance: int,
) -> tuple[float, pd.DataFrame]:
    """The price of the largest mean boundary F1, and all that were tried."""
    # Above this no text is cut: all its cuts together save less.
    most = max(float(one.sum(0).min() - one.min(1).values.sum()) for one in cost)
    tried = [0.0, *np.geomspace(1e-3, 1.0, N_PRICES - 1) * max(most, 1e-6)]
    cuts = [cheapest_runs(one, tried, shortest=shortest) for one in cost]
    means = [
        _mean_f1(texts, [of_text[place] for of_text in cuts], tolerance)
        for place in range(len(tried))
    ]
    best = [place for place, f1 in enumerate(means) if f1 == max(means)]
    return tried[best[len(best) // 2]], pd.DataFrame({"price": tried, "f1": means})


def _mean_f1(texts: Sequence[LabelledTokens], runs: list[Runs], tolerance: int) -> float:
    """Over the texts whose pieces are known."""
    known = [
        boundary_f1([begin for begin, _ in own[1:]], text.boundaries, tolerance=tolerance)
        for text, own in zip(texts, runs, strict=True)
        if text.known
    ]
    return sum(known) / len(known) if known else float("nan")


def _token_table(
    texts: Sequence[LabelledTokens], cuts: _Cuts, skills: Sequence[str]
) -> pd.DataFrame:
    rows = []
    for number, (text, runs, alone) in enumerate(zip(texts, cuts.runs, cuts.alone, strict=True)):
        state = _states(runs, len(text.tokens))
        begins, true_begins = {begin for begin, _ in runs[1:]}, set(text.boundaries)
        rows += [
            {
                "text": number,
                "place": place,
                "token": token,
                "skill": skills[state[place]],
                "begins": place in begins,
                "alone": skills[alone[place]],
                "true": text.truth[place],
                "true_begins": place in true_begins,
            }
            for place, token in enumerate(text.tokens)
        ]
    return pd.DataFrame(rows)


def _states(runs: Runs, n: int) -> list[int]:
    stops = [begin for begin, _ in runs[1:]] + [n]
    return [
        state for (begin, state), stop in zip(runs, stops, strict=True) for _ in range(begin, stop)
    ]


_SCORES = {
    "text": int, "n_tokens": int, "n_true": int, "n_found": int, "found": float, "equal": float,
    "random": float, "argmax": float, "accuracy": float,
}  # fmt: skip


def _scores(
    texts: Sequence[LabelledTokens],
    cuts: _Cuts,
    skills: Sequence[str],
    tolerance: int,
    seed: int,
) -> pd.DataFrame:
    rows = []
    for number, (text, runs, alone) in enumerate(zip(texts, cuts.runs, cuts.alone, strict=True)):
        if not text.known:
            continue
        n, true = len(text.tokens), text.boundaries
        random_ = random.Random(f"{seed} {number}")
        drawn = [random_.sample(range(1, n), len(true)) for _ in range(_RANDOM_CUTS)]
        state = _states(runs, n)
        ours = {
            "found": [begin for begin, _ in runs[1:]],
            "equal": equal_cuts(n, len(true)),
            "argmax": [at for at in range(1, n) if alone[at] != alone[at - 1]],
        }
        f1 = {name: boundary_f1(cut, true, tolerance=tolerance) for name, cut in ours.items()}
        by_chance = [boundary_f1(cut, true, tolerance=tolerance) for cut in drawn]
        right = [skills[one] == skill for one, skill in zip(state, text.truth, strict=True)]
        rows.append(
            {
                "text": number,
                "n_tokens": n,
                "n_true": len(true),
                "n_found": len(ours["found"]),
                **f1,
                "random": sum(by_chance) / len(by_chance),
                "accuracy": sum(right) / n,
            }
        )
    return pd.DataFrame(rows, columns=list(_SCORES)).astype(_SCORES)


def equal_cuts(n: int, cuts: int) -> list[int]:
    """Where ``n`` tokens are cut into ``cuts`` + 1 parts of equal length, to rounding.

    >>> equal_cuts(9, 2), equal_cuts(9, 0)
    ([3, 6], [])
    """
    return [round(n * part / (cuts + 1)) for part in range(1, cuts + 1)]
