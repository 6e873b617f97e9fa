"""Whether a model holds the weights that a `NeuronSet` was published with."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lens_skills.activations import find_site
from lens_skills.activations.components import Component
from lens_skills.activations.locations import site_names
from lens_skills.cards import fold
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.publishing.probe import (
    Difference,
    Probe,
    compare,
    encoded,
    invariant,
    rows_of,
    sizes_of,
    take,
    tokenizer_of,
    tolerance_of,
)


@dataclass(frozen=True)
class SetCheck:
    """What a check found; printing it shows a card. Other weights raise, and give none.

    Attributes:
        name: Of the set.
        model: What the model calls itself.
        exact: Whether the weights are the same numbers, bit for bit, by their fingerprint.
        dtype, implementation, normalization: ``(of the set, here)``.
        activations: The largest distance of a layer, as a share of its size.
        log_probabilities: Distance of next-token log-probabilities, in nats.
        tolerance: Of both, for these dtypes.
        n_tokens, n_layers: Compared.
        moved: Components whose own site holds other numbers here, as a folded or centred model's
            may; empty where none.
        warnings: What a reader must know.
    """

    name: str
    model: str
    exact: bool
    dtype: tuple[str, str]
    implementation: tuple[str, str]
    normalization: tuple[str, str]
    activations: float
    log_probabilities: float
    tolerance: Mapping[str, float]
    n_tokens: int
    n_layers: int
    moved: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """One row per quantity compared: what, found, allowed."""
        return pd.DataFrame(
            {
                "what": list(self.tolerance),
                "found": [getattr(self, name) for name in self.tolerance],
                "allowed": list(self.tolerance.values()),
            }
        )

    def __repr__(self) -> str:
        most = self.tolerance
        how = "bit for bit" if self.exact else "as far as rounding lets see"
        lines = [
            f"{self.name} fits {self.model}: the same weights, {how}",
            f"  {_pair(self.dtype)} · {_pair(self.implementation)} · "
            f"norm {_pair(self.normalization)}",
            f"  activations off by {self.activations:.2g} of their size "
            f"({most['activations']:.2g} allowed), in the worst of {self.n_layers} layers",
            f"  log-probabilities off by {self.log_probabilities:.2g} nats "
            f"({most['log_probabilities']:.2g} allowed)",
            f"compared on {self.n_tokens} fixed tokens, in every layer: the MLP's neurons and the "
            "residual stream less its mean, which folding and centring leave as they are, and next "
            "tokens",
            *(f"warning: {text}" for text in self.warnings),
        ]
        return fold("\n".join(lines))


def _pair(both: tuple[str, str]) -> str:
    there, here = (one or "?" for one in both)
    return there if there == here else f"{there} → {here}"


def check_model(
    document: Mapping[str, Any], probe: Probe, units: Sequence[Component], adapter: ModelAdapter
) -> SetCheck:
    """What differs of a model that holds the set's weights; warns of what matters.

    Raises:
        LensSkillsError: Another model, tokenizer or other weights: what differs, where first.
    """
    about, name = document["model"], document["name"]
    _check_sizes(document, units, adapter)
    _check_tokens(document, probe, adapter)
    here = take(adapter, units, rows_of(probe), probe.top)
    other = [site for site in probe.sketches if site not in here.sketches]
    shapes = [
        f"{site}: {tuple(part.shape)} and {tuple(here.sketches[site].shape)}"
        for site, part in probe.sketches.items()
        if site not in other and part.shape != here.sketches[site].shape
    ]
    if other or shapes:
        raise LensSkillsError(
            _refused(document, adapter) + f"its layers are of other shapes ({(other + shapes)[0]})."
        )
    apart = compare(probe, here, [unit.stop - unit.start for unit in units])
    dtype = about["dtype"], str(adapter.dtype).removeprefix("torch.")
    coarse = dtype if adapter.precision is None else (*dtype, adapter.precision)
    most = tolerance_of(document["probe"]["tolerance"], *coarse)
    if not apart.same(most):
        raise LensSkillsError(
            _refused(document, adapter) + _what_differs(apart, most, units, coarse)
        )
    pairs = list(zip(units, apart.own, strict=True))
    moved = tuple(unit.name for unit, off in pairs if off > most["activations"])
    if wrong := [name for name in moved if _site(units, name) and invariant(_site(units, name))]:
        raise LensSkillsError(
            _refused(document, adapter)
            + f"{_some(wrong)} differ by up to {max(apart.own):.2g} of their size, and "
            f"{most['activations']:.2g} is what {coarse[-1]} may be off by."
        )
    exact = adapter.fingerprint() == about["fingerprint"]
    normalization = about["normalization"], normalization_of(adapter)
    said = _warnings(exact, dtype, adapter, about, normalization, moved, most)
    for text in said:
        warnings.warn(f"{name}: {text}", RuntimeWarning, stacklevel=3)
    return SetCheck(
        name=name,
        model=adapter.name,
        exact=exact,
        dtype=dtype,
        implementation=(about["implementation"], adapter.implementation),
        normalization=normalization,
        activations=apart.worst,
        log_probabilities=apart.log_probability,
        tolerance=dict(most),
        n_tokens=len(probe.tokens),
        n_layers=len(apart.layers),
        moved=moved,
        warnings=said,
    )


def _warnings(
    exact: bool,
    dtype: tuple[str, str],
    adapter: ModelAdapter,
    about: Mapping[str, Any],
    normalization: tuple[str, str],
    moved: Sequence[str],
    most: Mapping[str, float],
) -> tuple[str, ...]:
    said = []
    if dtype[0] != dtype[1] or adapter.precision is not None:
        now = adapter.precision or dtype[1]
        said.append(
            f"published from {dtype[0]}, read in {now}: a change of the weights below "
            f"{most['activations']:.0%} of a layer's activations cannot be seen, and effects of "
            f"that order may differ. Open it in {dtype[0]} to see more"
        )
    elif not exact and not moved:
        said.append(
            "the weights are not the same numbers, bit for bit, yet activations agree within "
            "rounding: they are folded, centred or laid out in another way, or were changed by "
            "less than can be seen here"
        )
    if normalization[0] != normalization[1]:
        said.append(
            f"the norms were {normalization[0]} and are {normalization[1]} here (a name in Pre has "
            "its gains folded into the matrices): neurons are the same, matrices are not"
        )
    if moved:
        said.append(
            f"{_some(moved)} hold other numbers at their site, as in a model that was folded or "
            "centred: r stays, effects of ablating to zero and thresholds do not carry over"
        )
    return tuple(said)


def normalization_of(adapter: ModelAdapter) -> str:
    """TransformerLens's name of the norms; of folded ones it ends in ``Pre``."""
    return str(getattr(adapter.model.cfg, "normalization_type", "") or "")


def _refused(document: Mapping[str, Any], adapter: ModelAdapter) -> str:
    return (
        f"{adapter.name} is not the model {document['name']!r} was published with "
        f"({document['model']['name']}): "
    )


def _check_sizes(
    document: Mapping[str, Any], units: Sequence[Component], adapter: ModelAdapter
) -> None:
    there, here = document["model"]["sizes"], sizes_of(adapter)
    other = [f"{name} {there[name]:,} and here {here[name]:,}" for name in here
             if there[name] != here[name]]  # fmt: skip
    if other:
        raise LensSkillsError(_refused(document, adapter) + f"{', '.join(other)}.")
    known = set(site_names(adapter.hook_names()))
    for unit in units:
        if unit.site not in known:
            raise LensSkillsError(
                _refused(document, adapter)
                + f"{unit.name} is read at {unit.site!r}, which it has not."
            )
        try:
            find_site(adapter, unit.site, [unit.layer])
        except LensSkillsError as error:
            raise LensSkillsError(
                _refused(document, adapter) + f"{unit.name} is not in it: {error}"
            ) from error


def _check_tokens(document: Mapping[str, Any], probe: Probe, adapter: ModelAdapter) -> None:
    largest, lowest = int(probe.tokens.max()), int(probe.tokens.min())
    if lowest < 0 or largest >= adapter.n_embeddings or int(probe.top.max()) >= adapter.d_vocab:
        raise LensSkillsError(
            f"{document['name']!r} was probed with token {largest}, which {adapter.name} has not."
        )
    before, now = rows_of(probe), encoded(adapter)
    for text, first, second in zip(document["probe"]["texts"], before, now, strict=False):
        if first != second:
            raise LensSkillsError(
                _refused(document, adapter)
                + f"its tokenizer reads {text!r} as {second[:8]}, and the set's as {first[:8]}. "
                "Give the model its own tokenizer: load_model(…, tokenizer=…)."
            )
    there, here = document["tokenizer"], tokenizer_of(adapter)
    if there["fingerprint"] != here["fingerprint"]:
        warnings.warn(
            f"{document['name']}: the vocabulary is not the same ({there['size']:,} tokens and "
            f"{here['size']:,}), though the probe's texts are read alike",
            RuntimeWarning,
            stacklevel=4,
        )


def _what_differs(
    apart: Difference, most: Mapping[str, float], units: Sequence[Component], dtypes: Sequence[str]
) -> str:
    bar = most["activations"]
    layers = [layer for layer, off in enumerate(apart.layers) if off > bar]
    parts = []
    if layers:
        first = layers[0]
        before = max(apart.layers[:first], default=0.0)
        parts.append(
            f"the first layer that differs is {first}, by {apart.layers[first]:.2g} of its size"
            + (f" (up to {before:.2g} before it)" if first else "")
        )
    if apart.log_probability > most["log_probabilities"]:
        parts.append(f"next-token log-probabilities differ by {apart.log_probability:.2g} nats")
    wrong = [unit.name for unit, off in zip(units, apart.own, strict=True) if off > bar]
    parts.append(f"{len(wrong)} of the {len(units)} components of the set differ")
    return (
        f"other weights: {'; '.join(parts)}. In {' and '.join(dict.fromkeys(dtypes))} the same "
        f"weights differ by at most {bar:.2g} and {most['log_probabilities']:.2g} nats. To ask "
        "what these components do in this model: audit(model, task, neurons=set.names)."
    )


def _site(units: Sequence[Component], name: str) -> str:
    return next((unit.site for unit in units if unit.name == name), "")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
