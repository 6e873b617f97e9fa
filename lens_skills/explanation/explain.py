"""`explain`: which features of the input drive some neurons, measured on examples held out."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import (
    DEFAULT_SITE,
    ActivationTable,
    Position,
    parse_metric,
    soft_position,
)
from lens_skills.activations.activation_reader import (
    ActivationReader,
    metric_values,
    read_neurons,
    units_of,
)
from lens_skills.activations.components import Component, site_of
from lens_skills.activations.excerpts import Excerpt, excerpts_without_tokens, read_tokens
from lens_skills.activations.locations import parse_position
from lens_skills.checkpoints import part, resumable
from lens_skills.data import Example, field_of, halves
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.describe import FEATURES, Neurons, check_describer, describe
from lens_skills.explanation.disguises import disguises, label_columns, stands_for, told
from lens_skills.explanation.explanations import ALPHA, Explanation, Explanations
from lens_skills.explanation.feature_bank import FeatureBank, FeatureMatrix, feature_bank
from lens_skills.explanation.feature_tests import FeatureAssociation, associate
from lens_skills.explanation.token_logits import has_direction, logits_of
from lens_skills.models import Chat, ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.progress import progress
from lens_skills.results import provenance
from lens_skills.stats.effect_tests import FEW_GROUPS, FEWEST_GROUPS, effective_groups

ACCEPTED = 0.6
"""Share of the top examples from which on a feature is accepted as a heuristic (2410.21272)."""

_FEWEST = 10  # examples per half

_NO_TEXT = " The examples have no text (a table's rows lack the column 'prompt'): no feature of it."
_DIGITS = 6  # of a share or a p: more are noise


@resumable()
def explain(
    model: Any,
    task: Sequence[Example],
    neurons: Any,
    *,
    features: FeatureBank | None = None,
    metric: Any = None,
    at: str | None = None,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    k: int = 50,
    n_permutations: int = 999,
    n_examples: int = 5,
    n_tokens: int = 10,
    describer: Any = None,
    judge: Any = None,
    n_texts: int | None = None,
    n_others: int = 99,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Explanations:
    """What drives each neuron and what it writes: `Explanations`.

    The examples are split in two by group. On one half every feature is fitted and ranked, on the
    other it is measured: the variance it explains, its share among the neuron's top and bottom
    examples, its mutual information; each against exchanges of the feature that respect groups.

    Every feature is also held against the task's labels and the metric: one on which η² of any of
    them is 0.8 or more stands for it (``disguises``), and what it explains cannot be told from it.

    With a ``describer`` each neuron also gets a sentence, made of the first half alone. A judge
    says of texts of the other half, by the sentence alone, whether the neuron fires; the score is
    the AUROC of the activation between its yes and no, beside two nulls of shuffled sentences:
    other neurons' sentences on this neuron, and this sentence on other neurons of the layer. See
    `Explanations.descriptions` and ``answers``. What an endpoint that fails did not answer is left
    out and said; the same call goes on from there.

    Args:
        model: A HookedTransformer or TransformerBridge; or an `ActivationTable`, which gives no
            tokens of the examples and nothing of what a neuron writes.
        task: A Task or examples: any that did not serve to choose the neurons are better.
        neurons: Names, (layer, index) rows, a `Selection`, or ``scores["metric"].top(20)``.
        features: From `feature_bank`; by default all that is found in the task.
        metric: What the neurons were chosen for, to be held against the features; default a
            selection's, else labels only. One that the model computes takes a pass more.
        at: The site of (layer, index) rows (default ``mlp.hook_post``); names say their own.
        position: Where in the prompt; default where the selection was scored, else ``"last"``.
        prompt: A soft prompt to read every example with.
        chat: As in `score`.
        k: Top and bottom examples for the overlap, at most a fifth of the held-out half.
        n_permutations: Exchanges of the features; 0 for none, and then there are no p.
        n_examples: Top and bottom examples to keep with their tokens, from all examples.
        n_tokens: Promoted and suppressed tokens to keep.
        describer: ``"features"``: the best conjunction of at most three of the bank's features,
            in words. Or an `endpoint`, which is shown the neuron's strongest texts and weak ones
            that are like them, with the activation at every token. Or a function of these two
            tuples of excerpts (``prompt``, ``activation``, ``tokens``, ``values``) that returns a
            sentence.
        judge: ``"features"``, which reads sentences in the bank's own words; an `endpoint`, which
            is asked once per sentence and text; or a function of sentence and text that returns
            yes or no. Default: the describer where it is an endpoint, else the bank.
        n_texts: Held-out texts to judge, drawn at random over the groups; default all where the
            bank judges, else 100.
        n_others: Other neurons of each layer for the nulls, drawn at random; ``"features"``
            describes them too. Of another describer the other neurons that are explained give the
            shuffled sentences.
        seed: Of the halves, the exchanges and the draws.
        checkpoint: A folder that keeps what is finished and the sums so far, about once a minute;
            the same call goes on there with the same numbers.

    Raises:
        LensSkillsError: No examples or neurons; a bank of which no feature varies here; fewer
            than `FEWEST_GROUPS` groups to measure on, unless no null is asked for; a describer or
            judge that is none; an endpoint for examples without text.

    Does not show: that the feature is what the neuron reads, as features go together; nor that the
    neuron does anything with it. `shortcuts` and `verify` intervene. A sentence that scores well
    need not be the only one that does, nor hold of other texts than the task's.

    Source: variance explained, Gurnee et al. 2024 (arXiv 2401.12181); overlap, Nikankin et al. 2024
    (arXiv 2410.21272); sentences by a describer, arXiv 2310.10708, of which this is an analogue:
    the questions, the AUROC on held-out groups and the nulls are this package's own; yes and no by
    the sentence alone is the observational mode of Huang et al. 2023 (arXiv 2309.10312).

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.arithmetic(digits=(1,))[:150]
    >>> why = ls.explain(model, task, ["L1N5"], n_permutations=0, describer="features", n_others=9)
    >>> why.descriptions.columns[:3].tolist()
    ['name', 'sentence', 'end']
    """
    judge = check_describer(describer, judge, n_texts)
    if len(task) == 0:
        raise LensSkillsError("no examples to explain neurons on: the task is empty.")
    table = model if isinstance(model, ActivationTable) else None
    if table is not None and prompt is not None:
        raise LensSkillsError(
            "a table is read as it was written: leave prompt=, or give the model."
        )
    source = with_soft_prompt(model, prompt, chat) if table is None else table
    components = single_features(units_of(source, neurons, at=at or DEFAULT_SITE), "explain")
    site = site_of(components)
    where = scored_position(source, neurons, position)
    bank = feature_bank(task) if features is None else features
    groups = field_of(task, "group")
    parts = check_halves(halves(groups, seed=seed), groups, n_permutations)
    rows = torch.tensor([[one.layer, one.start] for one in components])
    options: dict[str, Any] = {
        "at": components[0].site,
        "position": where,
        "chat": chat if table is not None else False,
        "purpose": "explained",
    }
    beside = rows[:0]
    if describer is not None:
        check_texts(task, describer, judge)
        beside = other_neurons(source, task, rows, n_others, seed=seed, **options)
    read = read_neurons(source, task, torch.cat([rows, beside]), **options).values
    activations, others = read[: len(rows)], read[len(rows) :]
    values = bank.values(task)
    kept, left_out = usable(bank, values, parts)
    if not kept:
        raise LensSkillsError(
            f"none of the {len(bank)} features can be used on these {len(task)} examples: "
            + "; ".join(f"{name!r}: {why}" for name, why in list(left_out.items())[:3])
            + ". Give examples that differ, or features of your own (feature_bank(extra=…))."
            + (_NO_TEXT if not any(example.prompt for example in task) else "")
        )
    active = _active(activations, parts)
    if not active.any():
        raise LensSkillsError(
            f"{components[0].name} and all others named here are never active on these examples: "
            f"{site} at {parse_position(where).labels[0]} does not vary. Choose another position, "
            "other neurons, or examples they fire on."
        )
    same = disguises(bank.only(*kept), values, _held_against(source, task, neurons, metric))
    stands = stands_for(same)
    k = max(1, min(k, len(parts[1]) // 5))
    design = FeatureMatrix.of([bank[name] for name in kept], values)
    options = {"k": k, "n_permutations": n_permutations, "seed": seed}
    found = part(
        "features", partial(associate, activations[active], design, groups, parts, **options)
    )
    described, answers, said = None, pd.DataFrame(), ()
    about_words: Mapping[str, Any] = {}
    if describer is not None:
        some = [
            one for one, is_active in zip(components, active.tolist(), strict=True) if is_active
        ]
        vary = _active(others, parts)

        def excerpts(wanted: Sequence[Sequence[int]]) -> Sequence[Sequence[Excerpt]]:
            if isinstance(source, ActivationTable):
                return excerpts_without_tokens(task, wanted, activations[active])
            return read_tokens(source, task, some, wanted, activations[active], where)

        made = describe(
            Neurons(
                tuple(one.name for one in some),
                tuple(one.layer for one in some),
                activations[active],
            ),
            Neurons((), tuple(beside[vary, 0].tolist()), others[vary]),
            task,
            bank.only(*kept),
            pd.DataFrame(values[kept]),
            groups,
            parts,
            excerpts,
            describer=describer,
            judge=judge,
            n_texts=n_texts,
            position=parse_position(where).labels[0],
            seed=seed,
        )
        described, answers, said = made.descriptions, made.answers, made.notes
        about_words = made.about
    extremes = _extremes(activations, n_examples)
    writes = None
    if isinstance(source, ActivationTable):
        tokens = excerpts_without_tokens(task, extremes, activations)
        gated = bool(source.manifest.get("gated", False))
        about = {**source.about, **provenance(task)}
    else:
        tokens = read_tokens(source, task, components, extremes, activations, where)
        if has_direction(source, site) and not source.packed:
            writes = logits_of(source, components, k=n_tokens, over=task)
        gated, about = source.gated, provenance(task, source)
    place = active.cumsum(0) - 1
    explained = []
    for number, one in enumerate(progress(components, len(components), "explain", "neurons")):
        is_active = bool(active[number])
        half = len(tokens[number]) // 2
        explained.append(
            Explanation(
                name=one.name,
                rows=feature_rows(found, int(place[number]), bank, stands, kept, gated=gated)
                if is_active
                else (),
                top=tokens[number][:half],
                bottom=tokens[number][half:],
                writes=None if writes is None else writes[number][0],
                activation=activations[number],
                values=values,
                note="" if is_active else "never active on these examples: it does not vary",
                described=None if described is None else described.get(one.name),
            )
        )
    measured = [groups[row] for row in parts[1].tolist()]
    n_groups = len(set(measured))
    return Explanations(
        neurons=tuple(explained),
        features=bank.only(*kept)
        .frame()
        .assign(
            exchange=list(found.schemes) or [""] * len(kept),
            stands_for=[stands.get(name, "") for name in kept],
        ),
        site=site,
        position=parse_position(where).labels[0],
        n_fitted=len(parts[0]),
        n_held=len(parts[1]),
        n_groups=n_groups,
        k=k,
        n_permutations=n_permutations,
        left_out=left_out,
        notes=(
            *notes_on(left_out, active, measured, n_permutations, len(kept)),
            *disguise_notes(same),
            *([] if any(example.prompt for example in task) else [_NO_TEXT.strip()]),
            *said,
        ),
        disguises=same,
        answers=answers,
        provenance={
            **about,
            **about_words,
            "example_ids": list(field_of(task, "id")),
            "seed": seed,
        },
    )


def check_texts(task: Sequence[Example], *asked: Any) -> None:
    """Refuses to ask about examples that have no text."""
    if any(one is not None and one != FEATURES for one in asked) and not all(
        example.prompt for example in task
    ):
        raise LensSkillsError(
            "a describer or judge that is asked reads the examples, and some have no text (a "
            f"table's rows lack the column 'prompt'). Give prompts, or say {FEATURES!r} for both."
        )


def other_neurons(
    source: ModelAdapter | ActivationTable,
    task: Sequence[Example],
    rows: Int[Tensor, "neuron 2"],
    n: int,
    *,
    seed: int,
    **options: Any,
) -> Int[Tensor, "other 2"]:
    """At most ``n`` others of each neuron's layer, drawn at random, as (layer, index) rows."""
    layers = sorted(set(rows[:, 0].tolist()))
    width = ActivationReader(source, task, layers=layers, **options).width
    found = []
    for layer in layers:
        own = set(rows[rows[:, 0] == layer, 1].tolist())
        free = np.array([index for index in range(width) if index not in own], dtype=np.int64)
        random = np.random.default_rng([seed, layer])
        drawn = random.choice(free, min(n, len(free)), replace=False)
        found += [[layer, index] for index in sorted(drawn.tolist())]
    return torch.tensor(found, dtype=rows.dtype).reshape(-1, 2)


def single_features(components: Sequence[Component], verb: str) -> tuple[Component, ...]:
    """The components; raises where there are none, or one is more than one number per token."""
    if not components:
        raise LensSkillsError(f"no neurons to {verb}: none were named (an empty selection?).")
    wide = [one.name for one in components if one.stop - one.start > 1]
    if wide:
        raise LensSkillsError(
            f"{wide[0]} is more than one number per token. Name neurons, or single features of "
            "another site, such as 'L9H3.36'."
        )
    return tuple(components)


def scored_position(
    adapter: ModelAdapter | ActivationTable, neurons: Any, position: Position | None
) -> Position:
    """As asked; else where a selection was scored; of a soft prompt's vectors, the last."""
    labels = getattr(neurons, "positions", ())
    if isinstance(adapter, ActivationTable):
        return position or (labels or adapter.manifest["positions"])[0]
    where = soft_position(adapter, labels[0] if position is None and len(labels) == 1 else position)
    return "last" if isinstance(where, list) and position is None else where


def check_halves(
    parts: tuple[Int[Tensor, " fitted"], Int[Tensor, " held"]], groups: Sequence[str], n_draws: int
) -> tuple[Int[Tensor, " fitted"], Int[Tensor, " held"]]:
    """The halves; raises where they are too small to measure on, or to draw a null from."""
    n_groups = len({groups[row] for row in parts[1].tolist()})
    if min(map(len, parts)) < _FEWEST or n_groups < 2:
        raise LensSkillsError(
            f"{len(groups)} examples in {len(set(groups))} groups leave {len(parts[0])} to fit "
            f"features on and {len(parts[1])} to measure them on; {_FEWEST} of each are the least. "
            "Give more examples."
        )
    if n_draws and n_groups < FEWEST_GROUPS:
        raise LensSkillsError(
            f"{n_groups} groups in the half that is measured are too few for a null or an "
            f"interval: exchanging whole groups needs {FEWEST_GROUPS} at least. Give more groups "
            f"(the task has {len(set(groups))}), or say n_permutations=0: then features are ranked "
            "and what they explain of these examples is printed, without any p."
        )
    return parts


def usable(
    bank: FeatureBank, values: pd.DataFrame, parts: tuple[Tensor, Tensor]
) -> tuple[list[str], dict[str, str]]:
    """The features that vary on both halves, and why the others do not serve."""
    kept, left_out = [], {}
    for name in bank.names:
        column = values.loc[:, name]
        if column.isna().any():
            left_out[name] = f"it has no value for {int(column.isna().sum())} examples"
        elif any(column.iloc[part.numpy()].nunique() < 2 for part in parts):
            whole = column.nunique() < 2
            left_out[name] = f"it is constant on {'these examples' if whole else 'one half'}"
        else:
            kept.append(name)
    return kept, left_out


def _active(
    activations: Float[Tensor, "neuron row"], parts: tuple[Tensor, Tensor]
) -> Bool[Tensor, " neuron"]:
    """Which neurons vary on both halves."""
    varies = [activations[:, part].amax(1) > activations[:, part].amin(1) for part in parts]
    return varies[0] & varies[1]


def _extremes(activations: Float[Tensor, "neuron row"], n: int) -> list[list[int]]:
    """The places of each neuron's n strongest examples, then of its n weakest, weakest first."""
    n = min(n, activations.shape[1] // 2)
    order = activations.argsort(dim=1, descending=True, stable=True)
    return torch.cat([order[:, :n], order.flip(1)[:, :n]], dim=1).tolist()


def feature_rows(
    found: FeatureAssociation,
    neuron: int,
    bank: FeatureBank,
    stands: Mapping[str, str],
    names: Sequence[str],
    *,
    gated: bool,
) -> tuple[Mapping[str, Any], ...]:
    """One neuron's features, best on the fitted half first; None where a number is not defined."""
    order = found.explained_fitted[neuron].argsort(descending=True, stable=True)
    rows = []
    for place in order.tolist():
        feature = bank[names[int(place)]]

        def number(name: str, place: int = place) -> float | None:
            value = float(getattr(found, name)[neuron, place])
            return None if math.isnan(value) else round(value, _DIGITS)

        base = float(found.base[place])
        top, p_top = number("overlap_top"), number("p_top")
        bottom, p_bottom = number("overlap_bottom"), number("p_bottom")
        ends = [(top, p_top), (bottom, p_bottom)] if gated else [(top, p_top)]
        rows.append(
            {
                "feature": feature.name,
                "kind": feature.kind,
                "surface": feature.surface,
                "family": feature.family,
                "stands_for": stands.get(feature.name, ""),
                "explained_fitted": number("explained_fitted"),
                "ranked_first": number("first"),
                "variance_explained": number("explained"),
                "low": number("explained_low"),
                "high": number("explained_high"),
                "direction": int(found.direction[neuron, place]),
                "overlap_top": top,
                "overlap_bottom": bottom,
                "base": None if math.isnan(base) else round(base, _DIGITS),
                "lift": None if top is None else round(top / base, _DIGITS),
                "information": number("information"),
                "p": number("p"),
                "q": number("q"),
                "p_top": p_top,
                "p_bottom": p_bottom,
                "p_information": number("p_information"),
                "accepted": any(_accepted(share, p) for share, p in ends),
            }
        )
    return tuple(rows)


def _accepted(share: float | None, p: float | None) -> bool:
    """At least 60 % of the examples, and (where there is a null) more than chance gives."""
    return share is not None and share >= ACCEPTED and (p is None or p <= ALPHA)


def _held_against(
    source: ModelAdapter | ActivationTable, task: Sequence[Example], neurons: Any, metric: Any
) -> dict[str, np.ndarray]:
    """The metric the neurons were chosen for, where it can be known, and the labels."""
    wanted = None
    chosen = getattr(neurons, "metric", None) if metric is None else metric
    if metric is not None or isinstance(chosen, str):
        named = source.named(chosen) if isinstance(source, ActivationTable) else chosen
        try:
            wanted = parse_metric(named, task, asked="explain(metric=…)")
        except LensSkillsError:
            if metric is not None:
                raise
            wanted = None  # one of the user's own functions, which only its name is left of
    labels = label_columns(task)
    if wanted is None:
        return labels
    values = metric_values(source, task, [wanted])[wanted.name]
    return metric_column(wanted.name, values) | labels


def metric_column(name: str, values: Float[Tensor, " row"]) -> dict[str, np.ndarray]:
    """A metric as a column to hold features against; a label is called as the labels are."""
    kind, _, column = name.partition(":")
    called = f"label {column}" if kind == "label" else f"metric {name}"
    return {called: values.double().numpy()}


def disguise_notes(same: pd.DataFrame) -> list[str]:
    """What to say of surface features that stand for a label or the metric; warns of the user's."""
    notes = []
    surface = same.loc[same["surface"]]
    mine, theirs = (surface.loc[(surface["family"] == "yours") == own] for own in (True, False))
    for row in mine.drop_duplicates("feature").itertuples():
        text = (
            f"the feature {row.feature!r} is the {row.column} in disguise (η² = "
            f"{row.eta_squared:.2f}): what it explains is the task. Mark it so: feature_bank(…, "
            "task_defining=[…])"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        notes.append(text)
    if n := theirs["feature"].nunique():
        verb, what = ("feature stands", "it explains")
        if n > 1:
            verb, what = ("features stand", "they explain")
        notes.append(
            f"{n} surface {verb} for a label or the metric here: {told(theirs)}: what {what} "
            "cannot be told from it (see disguises)"
        )
    return notes


def notes_on(
    left_out: Mapping[str, str],
    active: Bool[Tensor, " neuron"],
    groups: Sequence[str],
    n_draws: int,
    n_features: int,
) -> list[str]:
    """What a reader must know before quoting a number; ``groups``: of the measured half."""
    notes = []
    if silent := int((~active).sum()):
        notes.append(f"{silent} of {len(active)} neurons are never active on these examples")
    if left_out:
        some = ", ".join(repr(name) for name in list(left_out)[:4])
        notes.append(
            f"{len(left_out)} features were left out, as they cannot be used here: {some}"
            + (", …" if len(left_out) > 4 else "")
            + " (see left_out)"
        )
    n_groups, equal = len(set(groups)), effective_groups(groups)
    if n_groups < FEWEST_GROUPS:
        notes.append(
            f"{n_groups} of the {FEWEST_GROUPS} groups that a p or an interval takes are in the "
            "measured half: the shares are those of these examples and say nothing about others"
        )
    elif equal < FEWEST_GROUPS:
        notes.append(
            f"the {n_groups} groups of the measured half are so uneven that they say as much as "
            f"{equal:.1f} of one size: do not trust the intervals"
        )
    elif n_draws and n_groups < FEW_GROUPS:
        notes.append(f"{n_groups} groups on the measured half are few: p is coarse")
    n_tests = int(active.sum()) * n_features
    if n_draws:
        needed = math.ceil(n_tests / (ALPHA * (1 + n_draws)) - 1e-9)
        if needed > 1:
            notes.append(
                f"the smallest p is {1 / (1 + n_draws):.2g}: q <= {ALPHA} takes {needed:,} of "
                f"{n_tests:,} tests at it"
            )
    return notes
