"""`Probe`: what a model does on fixed tokens, to tell whether another holds the same weights.

Compared is what folding and centring leave as it is: in every layer the MLP's neurons, and the
residual stream without its mean over dimensions, each as a few random projections; and the
log-probabilities of the next token. The components of a set are compared as well, at their own
site, where a folded or centred model may hold other numbers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.components import Component
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.models.neurons import NEURON_SITES, POST

TEXTS = (
    "The keys to the old cabinet near the door",
    "12 + 7 = 19, and 4 * 6 =",
    "def add(a, b):\n    return a",
    "In 1969 the first people walked on the Moon.",
    "Elle ne sait pas où il est",
)
RESIDUAL = "hook_resid_post"
SKETCHES, SEED, CHOICES = 8, 0, 8

TOLERANCE: Mapping[str, Mapping[str, float]] = {
    "float64": {"activations": 1e-4, "log_probabilities": 1e-3},
    "float32": {"activations": 1e-4, "log_probabilities": 1e-3},
    "float16": {"activations": 0.03, "log_probabilities": 0.1},
    "bfloat16": {"activations": 0.2, "log_probabilities": 0.7},
}
"""What rounding may make of it: activations as a share of their size, log-probabilities in nats.

Twice or more what was measured between the implementations, folded and not, of two models; see
``docs/howto/publish.md``.
"""


@dataclass(frozen=True, eq=False)
class Probe:
    """What a model does on fixed tokens.

    Attributes:
        tokens: The rows, one after another.
        lengths: How many of them each row has.
        sketches: Per site projections of a layer at every token, ``[layer token projection]``.
        top: The most probable next tokens, ``[token choice]``.
        log_probabilities: Theirs, in nats.
        own: Features of the set's components at their own sites, ``[feature token]``.
        scale: Of each of them the root mean square of all features of its layer there.
    """

    tokens: Int[Tensor, " token"]
    lengths: Int[Tensor, " row"]
    sketches: dict[str, Float[Tensor, "layer token projection"]]
    top: Int[Tensor, "token choice"]
    log_probabilities: Float[Tensor, "token choice"]
    own: Float[Tensor, "feature token"]
    scale: Float[Tensor, " feature"]

    def tensors(self) -> dict[str, Tensor]:
        """As they are written to a file."""
        plain = {name: value for name, value in vars(self).items() if name != "sketches"}
        return plain | {f"sketches/{site}": part for site, part in self.sketches.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], n_features: int) -> "Probe":
        """What `tensors` gave.

        Raises:
            LensSkillsError: Something is missing, or of another shape or kind of number.
        """
        names = ("tokens", "lengths", "top", "log_probabilities", "own", "scale")
        sites = [name for name in tensors if name.startswith("sketches/")]
        missing = [name for name in names if name not in tensors] + ["sketches"] * (not sites)
        if missing:
            raise LensSkillsError(f"the tensors of a NeuronSet lack {', '.join(missing)}.")
        parts: dict[str, Any] = {name: tensors[name] for name in names}
        n = len(parts["tokens"]) if parts["tokens"].ndim == 1 else -1
        shapes = {"top": (n, CHOICES), "log_probabilities": (n, CHOICES)}
        shapes |= {"own": (n_features, n), "scale": (n_features,)}
        whole = ("tokens", "lengths", "top")
        fits = all(tuple(parts[name].shape) == shape for name, shape in shapes.items())
        fits &= all((parts[name].dtype == torch.int64) == (name in whole) for name in names)
        fits &= parts["lengths"].ndim == 1 and n > 0
        fits = fits and bool((parts["lengths"] > 0).all()) and int(parts["lengths"].sum()) == n
        fits &= all(tensors[site].ndim == 3 and tensors[site].shape[1] == n for site in sites)
        finite = [part for part in tensors.values() if part.is_floating_point()]
        if not fits or not all(bool(part.isfinite().all()) for part in finite):
            raise LensSkillsError(
                "the tensors of a NeuronSet have other shapes or numbers than they must: it is "
                "damaged."
            )
        found = {site.partition("/")[2]: tensors[site] for site in sites}
        return cls(**parts, sketches=found)


def take(
    adapter: ModelAdapter,
    units: Sequence[Component],
    tokens: Sequence[Sequence[int]] | None = None,
    top: Int[Tensor, "token choice"] | None = None,
) -> Probe:
    """What this model does on the texts of the probe, or on tokens, a row each.

    Args:
        adapter: The model; soft prompt and chat play no part.
        units: The set's components.
        tokens: Rows; default `TEXTS` by the model's own tokenizer.
        top: The next tokens whose log-probabilities are read; default the most probable.

    Raises:
        LensSkillsError: A component that the model has not.
    """
    rows = [list(row) for row in tokens] if tokens is not None else encoded(adapter)
    sketched = _sketched(adapter)
    names = {f"blocks.{layer}.{site}" for site, layers in sketched.items() for layer in layers}
    names |= {unit.hook_name for unit in units}
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    logits: list[Tensor] = []
    for row in rows:
        ids = torch.tensor([row])

        def reader(name: str) -> Any:
            def read(activation: Tensor) -> None:
                flat = activation.detach().reshape(activation.shape[0], activation.shape[1], -1)
                parts[name].append(flat[0].double().cpu())

            return read

        found = adapter.forward(
            ids.to(adapter.device),
            torch.ones_like(ids, dtype=torch.bool).to(adapter.device),
            readers={name: reader(name) for name in names},
            logits_at=torch.arange(len(row))[None].to(adapter.device),
        )
        assert found is not None
        logits.append(found[0].detach().double().cpu().log_softmax(-1))
    values = {name: torch.cat(found) for name, found in parts.items()}
    for unit in units:
        if unit.stop > (there := values[unit.hook_name].shape[1]):
            raise LensSkillsError(
                f"{unit.name} is feature {unit.stop - 1:,} of {unit.hook_name}, and {adapter.name} "
                f"has {there:,} there. It is of another model, or was changed."
            )
    shares = torch.cat(logits)
    best = shares.topk(min(CHOICES, shares.shape[1]), dim=-1).indices if top is None else top
    own = [values[unit.hook_name][:, unit.start : unit.stop] for unit in units]
    scale = [values[unit.hook_name].square().mean().sqrt() for unit in units]
    width = [unit.stop - unit.start for unit in units]
    return Probe(
        tokens=torch.tensor([token for row in rows for token in row]),
        lengths=torch.tensor([len(row) for row in rows]),
        sketches={
            site: torch.stack(
                [_project(values[f"blocks.{layer}.{site}"], site) for layer in layers]
            ).float()
            for site, layers in sketched.items()
        },
        top=best,
        log_probabilities=shares.gather(1, best).float(),
        own=torch.cat(own, dim=1).mT.float().contiguous(),
        scale=torch.cat([part.repeat(n) for part, n in zip(scale, width, strict=True)]).float(),
    )


def encoded(adapter: ModelAdapter) -> list[list[int]]:
    """The probe's texts in this model's tokens."""
    plain = adapter.in_chat(False)
    return [plain.encode(text)[: adapter.n_ctx] for text in TEXTS]


def rows_of(probe: Probe) -> list[list[int]]:
    """The rows of tokens."""
    return [row.tolist() for row in probe.tokens.split(probe.lengths.tolist())]


def _sketched(adapter: ModelAdapter) -> dict[str, tuple[int, ...]]:
    """The sites compared in every layer that has them."""
    layers = adapter.layers_with(POST)
    widths = {adapter.mlp_widths[layer] for layer in layers}
    found = {RESIDUAL: tuple(range(adapter.n_layers))}
    return found | ({POST: layers} if len(layers) == adapter.n_layers and len(widths) == 1 else {})


def _project(
    values: Float[Tensor, "token feature"], site: str
) -> Float[Tensor, "token projection"]:
    if site == RESIDUAL:  # what centring takes away
        values = values - values.mean(dim=-1, keepdim=True)
    width = values.shape[-1]
    # The stream of RandomState is fixed for all time, which torch's and numpy's newer ones are not.
    draws = np.random.RandomState(SEED).randint(0, 2, size=(width, SKETCHES))
    return values @ torch.from_numpy(2.0 * draws - 1.0) / width**0.5


@dataclass(frozen=True)
class Difference:
    """How far two models are apart on the probe.

    Attributes:
        layers: Per layer the larger of both sites' distances, as a share of the layer's size.
        log_probability: Root mean square distance, in nats.
        own: Of every component the distance at its own site, as a share of the larger of its own
            size and its layer's.
    """

    layers: tuple[float, ...]
    log_probability: float
    own: tuple[float, ...]

    @property
    def worst(self) -> float:
        """Of all layers."""
        return max(self.layers)

    def same(self, tolerance: Mapping[str, float]) -> bool:
        """Whether it is no more than rounding makes of the same weights."""
        most = tolerance["log_probabilities"]
        return self.worst <= tolerance["activations"] and self.log_probability <= most


def compare(there: Probe, here: Probe, widths: Sequence[int]) -> Difference:
    """How far apart; ``widths`` are the features of each component."""
    n_layers = max(len(part) for part in there.sketches.values())
    layers = [0.0] * n_layers
    for site, before in there.sketches.items():
        after = here.sketches[site]
        apart = _size(after.double() - before.double()) / _size(before.double()).clamp(min=1e-12)
        layers = [max(pair) for pair in zip(layers, _known(apart), strict=True)]
    nats = (here.log_probabilities.double() - there.log_probabilities.double()).square().mean()
    own = []
    for before, after, scale in zip(
        there.own.split(list(widths)),
        here.own.split(list(widths)),
        there.scale.split(list(widths)),
        strict=True,
    ):
        size = torch.maximum(before.double().square().mean().sqrt(), scale[0].double())
        apart = (after.double() - before.double()).square().mean().sqrt() / size.clamp(min=1e-12)
        own += _known(apart[None])
    return Difference(tuple(layers), _known(nats.sqrt()[None])[0], tuple(own))


def _size(values: Float[Tensor, "layer token projection"]) -> Float[Tensor, " layer"]:
    return values.square().mean(dim=(1, 2)).sqrt()


def _known(values: Tensor) -> list[float]:
    """As numbers; what is no number (an overflow in half precision) is as far as can be."""
    return values.nan_to_num(nan=float("inf")).tolist()


def tolerance_of(table: Mapping[str, Mapping[str, float]], *dtypes: str) -> Mapping[str, float]:
    """That of the coarsest of the dtypes."""
    found = [table.get(dtype, table["bfloat16"]) for dtype in dtypes]
    return max(found, key=lambda one: one["activations"])


def tokenizer_of(adapter: ModelAdapter) -> dict[str, Any]:
    """The tokenizer's vocabulary as a hash, its size, and the ids of its ends."""
    vocabulary = json.dumps(sorted(adapter._tokenizer().get_vocab().items())).encode()
    return {
        "fingerprint": hashlib.sha256(vocabulary).hexdigest(),
        "size": len(adapter.tokenizer),
        "bos": adapter.bos_id,
        "eos": adapter.eos_id,
    }


def sizes_of(adapter: ModelAdapter) -> dict[str, int]:
    """The sizes that two models of the same weights share."""
    names = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab")
    return {name: int(getattr(adapter, name)) for name in names}


def invariant(site: str) -> bool:
    """Whether folding and centring leave a site's numbers as they are."""
    return site in NEURON_SITES
