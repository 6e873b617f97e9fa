"""`Edit`: what to put in place of an activation: ablation, patch, steering, clamp, scale."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Position
from lens_skills.causal.baseline import Sites, describe_source, edited_positions
from lens_skills.causal.formulas import formula_of
from lens_skills.causal.sources import Formula, SourceReader, Spot
from lens_skills.errors import LensSkillsError
from lens_skills.models import Lens


@dataclass(frozen=True, eq=False)
class Change:
    """An edit bound to a model, its examples and their baselines: old activations to new ones.

    Attributes:
        name: In words, such as ``"mean ablation over agreement, 0.4 of all #1"``.
        n_draws: How many random draws the effect is averaged over; 1 where nothing is random.
    """

    name: str
    n_draws: int
    formula: Formula

    def new(
        self,
        layer: int,
        site: str,
        old: Float[Tensor, "row pos feature"],
        features: Int[Tensor, "row feature"],
        examples: Int[Tensor, " row"],
        draw: int = 0,
    ) -> Float[Tensor, "row pos feature"]:
        """What stands in place of ``old``, which is never changed itself.

        Args:
            layer, site: Where.
            old: The activations: row r holds the features ``features[r]`` of one example.
            features: Their indices at the site.
            examples: The example of each row, as its place in the examples that were bound.
            draw: Which random draw, from 0.

        ``pos`` are the edited positions in the order they were asked for. With ``"all"`` it is the
        p-th token of the prompt (its beginning-of-sequence token left out); positions past a row's
        prompt are padding at the end, and what comes back there means nothing.
        """
        spot = Spot(layer, site, old, features, examples, draw)
        return self.formula(spot).to(old)


@dataclass(frozen=True)
class Edit:
    """An intervention, declared but not yet bound to a model.

    Attributes:
        kind: Its name.
        amount: By how much (``steer``, ``scale``), to what (``clamp``), how strong (``noise``).
        over: The split that means, standard deviations or donors come from.
        source: What a patch puts in place.
        draws: Random draws to average over.
    """

    kind: str
    amount: float = 0.0
    over: Any = None
    source: Any = None
    draws: int = 1

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount):
            raise LensSkillsError(f"{self.kind} by {self.amount}: give a finite number.")

    @property
    def name(self) -> str:
        """The edit in words, with its split.

        >>> scale(by=0.5).name
        'scaling by 0.5'
        """
        amount = f"{self.amount:g}"
        words = {
            "steer": f"steering by {amount} std",
            "clamp": f"clamping to {amount}",
            "scale": f"scaling by {amount}",
            "patch": f"patch from {self._source_words()}",
            "noise": f"noise ablation of {amount} std",
        }
        over = "" if self.over is None else f" over {describe_source(self.over)}"
        return words.get(self.kind, f"{self.kind} ablation") + over

    def sourced(self, units: Any) -> "Edit":
        """The edit; a `Selection` it acts on is its source where it needs one and none was named.

        >>> steer(by=2).sourced(["L1N5"]).over is None
        True
        """
        carries = all(getattr(units, name, None) is not None for name in ("neurons", "mean", "std"))
        needs = self.over is None and self.kind in ("mean", "noise", "steer")
        return replace(self, over=units) if carries and needs else self

    def _source_words(self) -> str:
        if isinstance(self.source, str):
            return f"the {self.source} twin"
        if hasattr(self.source, "prompt"):
            return f"example {self.source.id}"
        return "" if self.source is None else describe_source(self.source)

    def bind(
        self,
        lens: Lens,
        examples: Sequence[Any],
        sites: Sites,
        *,
        position: Position,
        seed: int = 0,
        batch_size: int = 32,
        answers: bool | None = None,
    ) -> Change:
        """The edit with everything it must know about a model and its examples.

        Args:
            lens: The model.
            examples: The examples to be edited, in the order `Change.new` counts them.
            sites: The layers it will be asked about, per site; one pass per site and source.
            position: Where it will act: ``"last"``, an index, a span, a list, or ``"all"``.
            seed: Of the random draws, which belong to an example's id and do not depend on the
                batch it is in or on the units beside it.
            batch_size: Examples per forward pass over the source.
            answers: Whether prompts are read as a metric with answers reads them (None: where
                every example has an answer).

        Raises:
            LensSkillsError: A source that is missing, empty, of another model, or does not fit the
                examples.
        """
        edited_positions(position)
        reader = SourceReader(lens, examples, sites, position, seed, batch_size, answers)
        formula = formula_of(self.kind, self.amount, self.over, self.source, reader)
        return Change(self.name, self.draws, formula)

    def hooks(
        self, model: Any, units: Any, *, position: Position = -1, **options: Any
    ) -> list[tuple[str, Callable[..., Tensor]]]:
        """Plain TransformerLens ``(name, function)`` pairs; options as in `hooks_of`."""
        from lens_skills.causal.hooks import hooks_of

        return hooks_of(self, model, units, position=position, **options)

    def torch_hooks(
        self, hf_model: Any, units: Any, *, lens: Any, position: Position = -1, **options: Any
    ) -> AbstractContextManager[Any]:
        """The same edit on a plain Hugging Face model, inside ``with``; see `edited_torch`."""
        from lens_skills.causal.torch_hooks import edited_torch

        return edited_torch(hf_model, units, self, lens=lens, position=position, **options)


def ablate(
    kind: str = "mean",
    *,
    over: Any = None,
    draws: int = 10,
    sd: float = 1.0,
) -> Edit:
    """The edit that removes what a unit says about its example.

    Args:
        kind: ``"zero"``: 0. ``"mean"``: the unit's mean at that position. ``"resample"``: its
            value in another example drawn at random. ``"noise"``: its own value plus
            ``sd`` · std · N(0, 1).
        over: Where mean, std or donors come from: a `Task`, or, for mean and noise, `Scores` or a
            `Selection`.
        draws: Of ``"resample"`` and ``"noise"``: how many to average the effect over.
        sd: Of ``"noise"``: its size in each unit's own standard deviation.

    Source: kinds and their disagreement: Miller et al. 2024 (arXiv 2407.08734).

    >>> ablate("zero").name
    'zero ablation'
    """
    if kind not in ("zero", "mean", "resample", "noise"):
        raise LensSkillsError(
            f"no ablation {kind!r}. Choose 'zero', 'mean', 'resample' or 'noise'."
        )
    if draws < 1:
        raise LensSkillsError(f"draws must be at least 1, not {draws}.")
    random = kind in ("resample", "noise")
    return Edit(kind, sd if kind == "noise" else 0.0, over, draws=draws if random else 1)


def patch(source: Any = "corrupted") -> Edit:
    """The edit that puts another prompt's activation, at the same position, in place.

    Args:
        source: ``"corrupted"``: each example's corrupted twin. An `Example`: the same one for all.
            A sequence of examples: paired with the edited ones, one to one and in order.

    Source: interchange interventions, Vig et al. 2020 (arXiv 2004.12265), section 3.

    >>> patch("corrupted").name
    'patch from the corrupted twin'
    """
    if isinstance(source, str) and source != "corrupted":
        raise LensSkillsError(
            f"no source {source!r} to patch from. Give 'corrupted', an example or examples."
        )
    return Edit("patch", source=source)


def steer(*, by: float, over: Any = None) -> Edit:
    """The edit that adds ``by`` standard deviations of each unit's own activation.

    Every feature of a head or an MLP moves by ``by`` of its own standard deviation.

    >>> steer(by=-2).name
    'steering by -2 std'
    """
    return Edit("steer", by, over)


def clamp(*, to: float) -> Edit:
    """The edit that fixes the activation at ``to``, in its own raw unit.

    >>> clamp(to=0).name
    'clamping to 0'
    """
    return Edit("clamp", to)


def scale(*, by: float) -> Edit:
    """The edit that multiplies the activation by ``by``; 1 changes nothing, 0 ablates.

    >>> scale(by=2).kind
    'scale'
    """
    return Edit("scale", by)
