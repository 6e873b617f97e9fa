"""`activating_examples`: examples from all of a neuron's range, token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position, parse_components
from lens_skills.activations.activation_reader import read_neurons
from lens_skills.activations.activation_table import ActivationTable
from lens_skills.activations.components import Component, site_of
from lens_skills.activations.excerpts import Excerpt, read_tokens
from lens_skills.activations.locations import parse_position
from lens_skills.cards import card_lines, showing
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.explanation.explain import scored_position, single_features
from lens_skills.explanation.explanations import clipped
from lens_skills.explanation.neurons_by_name import NeuronsByName
from lens_skills.explanation.token_logits import (
    LENSES,
    TokenLogits,
    check_lenses,
    has_direction,
    logits_of,
    shown,
)
from lens_skills.models import Chat, ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.results import Result, provenance

_SHOWN = 20  # neurons on a card


@dataclass(frozen=True)
class ActivationQuantile:
    """Some of the examples whose activation lies in one part of its ranks.

    Attributes:
        name: ``"highest"``, ``"80–100 %"`` (of the examples, by rank), …, ``"lowest"``.
        low, high: Of the activations in it.
        n_examples: How many examples it holds.
        excerpts: The ones shown, the highest first.
    """

    name: str
    low: float
    high: float
    n_examples: int
    excerpts: tuple[Excerpt, ...]


@dataclass(frozen=True)
class NeuronExamples:
    """One neuron's examples, and the tokens it writes.

    Attributes:
        name: Such as ``"L17N635"``.
        quantiles: From the highest activations down to the lowest.
        writes: By each lens that was asked for; empty where it cannot be read.
    """

    name: str
    quantiles: tuple[ActivationQuantile, ...]
    writes: tuple[TokenLogits, ...] = ()

    def __getitem__(self, quantile: str) -> ActivationQuantile:
        for one in self.quantiles:
            if one.name == quantile:
                return one
        raise LensSkillsError(
            f"{self.name} has no {quantile!r} examples. It has: "
            + ", ".join(one.name for one in self.quantiles)
            + "."
        )

    def _repr_html_(self) -> str:
        return str(showing("notebook_view").html(self))

    def __repr__(self) -> str:
        high, low = self.quantiles[0], self.quantiles[-1]
        lines = card_lines(f"{self.name} · from {low.low:+.2f} to {high.high:+.2f}")
        for written in self.writes:
            name = f" ({LENSES.get(written.lens, written.lens)})"
            lines += card_lines(f"promotes{name} {shown(written.promoted, 5)}", indent=2)
            lines += card_lines(f"suppresses{name} {shown(written.suppressed, 5)}", indent=2)
        for quantile in self.quantiles:
            # The first of each part, and of the lowest the last.
            for excerpt in quantile.excerpts[-1:] if quantile is low else quantile.excerpts[:1]:
                lines.append(clipped(f"  {quantile.name:<10} {excerpt}"))
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class ActivatingExamples(Result, NeuronsByName[NeuronExamples]):
    """Examples by activation; ``found["L17N635"]`` is one neuron, and printing shows each.

    Attributes:
        neurons: One `NeuronExamples` each, in the order they were named.
        activations: Of each on every example, float32, in the order of ``examples``.
        examples: One row per example: id group, then ``label:…`` for each of the task's labels.
        site, position: What was read where.
        n_quantiles: Into how many parts of equal number the examples were ordered.
        notes: What a reader must know.
        provenance: Model, task, split and versions.
    """

    neurons: tuple[NeuronExamples, ...]
    activations: Float[Tensor, "neuron example"]
    examples: pd.DataFrame
    site: str
    position: str
    n_quantiles: int
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def correlations(self) -> pd.DataFrame:
        """Pearson's r of every two neurons over the examples, by their names, in [-1, 1].

        NaN where one of them does not vary.
        """
        values = self.activations.double()
        centred = values - values.mean(1, keepdim=True)
        length = centred.norm(dim=1, keepdim=True)
        spread = length > 1e-9 * values.norm(dim=1, keepdim=True).clamp(min=1e-300)
        unit = torch.where(spread, centred / length, torch.nan)
        r = (unit @ unit.T).clamp(-1, 1).numpy()
        np.fill_diagonal(r, np.where(spread[:, 0].numpy(), 1.0, np.nan))
        return pd.DataFrame(r, index=pd.Index(list(self)), columns=pd.Index(list(self)))

    def frame(self) -> pd.DataFrame:
        """One row per example shown: name quantile low high n_examples id activation prompt."""
        rows = [
            {
                "name": one.name, "quantile": part.name, "low": part.low, "high": part.high,
                "n_examples": part.n_examples, "id": excerpt.id,
                "activation": excerpt.activation, "prompt": excerpt.prompt,
            }
            for one in self.neurons for part in one.quantiles for excerpt in part.excerpts
        ]  # fmt: skip
        columns = ["name", "quantile", "low", "high", "n_examples", "id", "activation", "prompt"]
        return pd.DataFrame(rows, columns=columns)

    def to_neuronpedia(self, folder: str | Path, *, evidence: pd.DataFrame | None = None) -> Path:
        """Writes one file per neuron that Neuronpedia and circuit-tracer show beside a graph.

        ``neurons.json`` says which file is whose: a number that joins layer and index.

        Args:
            folder: Made as needed.
            evidence: From ``Study.evidence()``, ``Selection.graded(verdict)`` or
                ``Verdict.frame()``; what it says of a neuron goes into its description.

        Raises:
            LensSkillsError: A unit that is no neuron of an MLP; a folder that cannot be written.
        """
        return Path(showing("neuronpedia").write_features(self, folder, evidence=evidence))

    def __repr__(self) -> str:
        about, n = self.provenance, len(self)
        lines = card_lines(
            f"Examples of {n} neuron{'s' * (n != 1)} of {about.get('model', 'the model')} on "
            f"{about.get('task', 'the task')} ({self.site} at {self.position})"
        )
        lines += card_lines(
            f"{len(self.examples):,} examples in {self.examples['group'].nunique():,} groups, in "
            f"{self.n_quantiles} parts of equal number, by activation",
            indent=2,
        )
        for one in self.neurons[:_SHOWN]:
            lines += repr(one).split("\n")
        if n > _SHOWN:
            more = self.neurons[_SHOWN].name
            lines.append(f"… and {n - _SHOWN} more: found[{more!r}], .frame()")
        for note in self.notes:
            lines += card_lines(f"note: {note}")
        return "\n".join(lines)


def activating_examples(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    at: str | None = None,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    n_quantiles: int = 5,
    per_quantile: int = 4,
    n_tokens: int = 10,
    lenses: Sequence[str] = ("logit",),
) -> ActivatingExamples:
    """Examples from all of a neuron's range, token by token: `ActivatingExamples`.

    The examples are ordered by the neuron's activation and cut into ``n_quantiles`` parts of equal
    number; each shows examples spread evenly over it, beside the highest and the lowest of all.
    The highest alone make any neuron look as if it did one thing only.

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: A Task or examples.
        neurons: Names, (layer, index) rows, a `Selection`, or ``scores["metric"].top(20)``.
        at: The site of (layer, index) rows (default ``mlp.hook_post``); names say their own.
        position: Where in the prompt; default where the selection was scored, else ``"last"``.
        prompt: A soft prompt to read every example with.
        chat: As in `score`.
        n_quantiles: Parts, 1 or more.
        per_quantile: Examples shown of each, and of the highest and the lowest, 1 or more.
        n_tokens: Promoted and suppressed tokens to keep.
        lenses: How these are read, ``"logit"`` and ``"jacobian"``; see `token_logits`. Empty: not.

    Raises:
        LensSkillsError: No examples or neurons; a unit of several features, or one that the model
            does not have; several positions; a table of activations, which holds no tokens.

    Does not show: what makes the neuron fire; examples share more than what it reads. `explain`
    tests that on examples held out, `shortcuts` by intervention.

    Source: examples from every interval of the activation, not the top alone: Bolukbasi et al. 2021
    (arXiv 2104.07143).

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.arithmetic(digits=(1,))[:50]
    >>> found = ls.activating_examples(model, task, ["L1N5", "L1N9"], lenses=())
    >>> [part.name for part in found["L1N5"].quantiles][:3]
    ['highest', '80–100 %', '60–80 %']
    """
    for name, number in (
        ("n_quantiles", n_quantiles), ("per_quantile", per_quantile), ("n_tokens", n_tokens),
    ):  # fmt: skip
        if number < 1:
            raise LensSkillsError(f"{name}= is how many, 1 or more, not {number}.")
    check_lenses(lenses)
    if isinstance(model, ActivationTable):
        raise LensSkillsError(
            "a table holds activations at its own positions and no tokens to show. Give the model."
        )
    if len(examples) == 0:
        raise LensSkillsError("no examples to show: the task is empty.")
    adapter = with_soft_prompt(model, prompt, chat)
    units = single_features(parse_components(adapter, neurons, at=at or DEFAULT_SITE), "show")
    site, where = site_of(units), scored_position(adapter, neurons, position)
    rows = torch.tensor([[one.layer, one.start] for one in units])
    values = read_neurons(adapter, examples, rows, at=site, position=where, purpose="shown").values
    parts = [quantiles(own, n_quantiles=n_quantiles, per_quantile=per_quantile) for own in values]
    wanted = [[place for _, _, places in own for place in places] for own in parts]
    tokens = read_tokens(adapter, examples, units, wanted, values, where)
    writes, notes = _written(adapter, units, examples, n_tokens, lenses)
    made = []
    for number, (unit, own) in enumerate(zip(units, parts, strict=True)):
        excerpts, shown_parts = iter(tokens[number]), []
        for name, members, places in own:
            inside = values[number, members]
            shown_parts.append(
                ActivationQuantile(
                    name, float(inside.min()), float(inside.max()), len(members),
                    tuple(next(excerpts) for _ in places),
                )
            )  # fmt: skip
        made.append(NeuronExamples(unit.name, tuple(shown_parts), writes[number]))
    dead = [u.name for u, own in zip(units, values, strict=True) if own.amax() == own.amin()]
    if dead:
        notes.append(f"{', '.join(dead)}: the same on all examples, in the order they were given")
    return ActivatingExamples(
        neurons=tuple(made),
        activations=values.float(),
        examples=_table(examples),
        site=site,
        position=parse_position(where).labels[0],
        n_quantiles=n_quantiles,
        notes=tuple(notes),
        provenance=provenance(examples, adapter),
    )


def quantiles(
    values: Float[Tensor, " example"], *, n_quantiles: int, per_quantile: int
) -> list[tuple[str, Int[Tensor, " member"], list[int]]]:
    """Parts of the examples by activation, the highest first: name, members, the ones to show.

    Ties stay in the order of the examples. An example is shown once: first among the highest and
    the lowest, which take at most half of all. Parts that no example falls into are left out.

    >>> [(name, shown) for name, _, shown in quantiles(torch.tensor([0., 3., 1., 2., 4., 5.]),
    ...     n_quantiles=2, per_quantile=1)]
    [('highest', [5]), ('50–100 %', [1]), ('0–50 %', [2]), ('lowest', [0])]
    """
    order = values.argsort(descending=True, stable=True)
    n, most = len(order), max(1, min(per_quantile, len(order) // 2))
    ends = {*order[:most].tolist(), *order[n - most :].tolist()} if n > 1 else set()
    found = [("highest", order[:most], order[:most].tolist())]
    for number, members in enumerate(order.tensor_split(n_quantiles)):
        if not len(members):
            continue
        top = 100 * (n_quantiles - number) / n_quantiles
        name = f"{top - 100 / n_quantiles:.3g}–{top:.3g} %"
        inside = [place for place in members.tolist() if place not in ends]
        few = min(per_quantile, len(inside))
        chosen = [inside[(2 * k + 1) * len(inside) // (2 * few)] for k in range(few)]
        found.append((name, members, [] if n == 1 else chosen))
    if n > 1:
        found.append(("lowest", order[n - most :], order[n - most :].tolist()))
    return found


def _written(
    adapter: ModelAdapter,
    units: Sequence[Component],
    examples: Sequence[Example],
    n_tokens: int,
    lenses: Sequence[str],
) -> tuple[list[tuple[TokenLogits, ...]], list[str]]:
    """What each writes by each lens, and why it is not known where it is not."""
    found: list[tuple[TokenLogits, ...]] = [() for _ in units]
    notes: list[str] = []
    if not lenses:
        return found, notes
    if not has_direction(adapter, units[0].site):
        return found, [f"no token is written by units at {units[0].site}: it is no output of one"]
    for lens in lenses:
        try:
            more = logits_of(adapter, units, k=n_tokens, over=examples, lenses=(lens,))
        except RunError:
            raise
        except LensSkillsError as why:
            notes.append(f"no {LENSES[lens]}: {why}")
            continue
        found = [(*before, *after) for before, after in zip(found, more, strict=True)]
    return found, notes


def _table(examples: Sequence[Example]) -> pd.DataFrame:
    labels = sorted({name for example in examples for name in example.labels})
    columns: dict[str, Any] = {
        "id": [example.id for example in examples],
        "group": [example.group for example in examples],
    }
    columns |= {f"label:{name}": [one.labels.get(name) for one in examples] for name in labels}
    return pd.DataFrame(columns)
