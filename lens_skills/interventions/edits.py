"""`Edit`: what to put in place of an activation: ablation, patch, steering, clamp, scale.

An edit becomes plain TransformerLens hooks (`hooks_of`), a ``with`` block (`edited`), or hooks
of torch on a Hugging Face model (`edited_torch`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.activations.components import parse_components, sites_of
from lens_skills.activations.locations import Span, edited_positions
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import (
    Change,
    Sites,
    SourceReader,
    describe_source,
    formula_of,
    measure_baseline,
)
from lens_skills.interventions.batched_edits import EditRows, edit_activation, stack_sets
from lens_skills.interventions.torch_places import torch_places
from lens_skills.models import Chat, ModelAdapter, with_soft_prompt
from lens_skills.models.feature_hooks import feature_editors
from lens_skills.models.text_writer import loses_cache
from lens_skills.models.weights import LayerSite


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

    def with_baseline(
        self, adapter: ModelAdapter, sites: Sequence[str], *, position: Position, answers: bool
    ) -> "Edit":
        """The edit with the means and deviations of its split in place of the split.

        They are read for all layers of the sites, so that one pass serves every binding.
        """
        if self.kind not in ("mean", "noise", "steer") or not isinstance(self.over, Sequence):
            return self
        layers = {site: adapter.layers_with(site) for site in sites}
        baseline = measure_baseline(adapter, self.over, layers, position=position, answers=answers)
        return replace(self, over=baseline)

    def _source_words(self) -> str:
        if isinstance(self.source, str):
            return f"the {self.source} twin"
        if hasattr(self.source, "prompt"):
            return f"example {self.source.id}"
        return "" if self.source is None else describe_source(self.source)

    def bind(
        self,
        adapter: ModelAdapter,
        examples: Sequence[Any],
        sites: Sites,
        *,
        position: Position,
        seed: int = 0,
        answers: bool | None = None,
    ) -> Change:
        """The edit with everything it must know about a model and its examples.

        Args:
            adapter: The model.
            examples: The examples to be edited, in the order `Change.new` counts them.
            sites: The layers it will be asked about, per site; one pass per site and source.
            position: Where it will act: ``"last"``, an index, a span, a list, or ``"all"``.
            seed: Of the random draws, which belong to an example's id and do not depend on the
                batch it is in or on the units beside it.
            answers: Whether prompts are read as a metric with answers reads them (None: where
                every example has an answer).

        Raises:
            LensSkillsError: A source that is missing, empty, of another model, or does not fit the
                examples; ``hook_resid_mid`` of a bridge, which is not the stream.
        """
        edited_positions(position)
        if adapter.implementation == "bridge" and "hook_resid_mid" in sites:
            raise LensSkillsError(
                "'hook_resid_mid' of a TransformerBridge is what the second norm reads, and not "
                "the residual stream: an edit there would not reach later blocks by itself. Edit "
                "'hook_resid_post' of the block, or 'hook_attn_out'."
            )
        reader = SourceReader(adapter, examples, sites, position, seed, answers)
        formula = formula_of(self.kind, self.amount, self.over, self.source, reader)
        return Change(self.name, self.draws, formula)

    def hooks(
        self, model: Any, neurons: Any, *, position: Position = -1, **options: Any
    ) -> list[tuple[str, Callable[..., Tensor]]]:
        """Plain TransformerLens ``(name, function)`` pairs; options as in `hooks_of`."""
        return hooks_of(self, model, neurons, position=position, **options)

    def torch_hooks(
        self, hf_model: Any, neurons: Any, *, adapter: Any, position: Position = -1, **options: Any
    ) -> AbstractContextManager[Any]:
        """The same edit on a plain Hugging Face model, inside ``with``; see `edited_torch`."""
        return edited_torch(hf_model, neurons, self, adapter=adapter, position=position, **options)


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

    Source: adding to activations, Turner et al. 2023 (arXiv 2308.10248); the unit is ours.

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


Hook = Callable[..., Tensor]


def hooks_of(
    do: Edit,
    model: Any,
    neurons: Any,
    *,
    position: Position = -1,
    at: str = DEFAULT_SITE,
    mask: Bool[Tensor, "batch pos"] | None = None,
    chat: Chat = False,
    seed: int = 0,
) -> list[tuple[str, Hook]]:
    """The edit as ``(name, function)`` pairs for ``model.run_with_hooks(…, fwd_hooks=…)``.

    A hook sees columns of a batch, not prompts. Which columns are hit:

    * ``-1`` (default): the last column of every forward pass. That is the last token of an
      unpadded or left-padded prompt; during generation with a key-value cache it is the last
      prompt token and then every generated one. Inside `edited`, ``model.generate`` is edited so
      with and without the cache.
    * ``"all"``: every column of every pass, special tokens and left padding included.
    * ``0, 1, …``: that column. Refused in a pass over a single token, because cached generation
      makes such passes and there the count would begin anew at every token.
    * With a ``mask`` of real tokens, positions count real tokens only: right-padded batches, and
      indices under left padding, come out right.

    The baseline of an edit is taken from its own source at the same position (``-1``: the last
    prompt token; ``"all"``: over all tokens); a `Selection` that is edited is a source itself.
    ``"resample"`` and ``"noise"`` take one random draw per forward pass, the next one each time;
    new hooks begin anew.

    Args:
        do: `ablate`, `patch`, `steer`, `clamp` or `scale`. A patch pairs row i of the batch
            with example i of its source.
        model: A HookedTransformer or TransformerBridge.
        neurons: Neurons, heads and MLPs, as names, rows or a `Selection`.
        position: An index, ``"last"``, ``"all"`` or a list of indices.
        at: The site of what is named as a neuron.
        mask: Which tokens of the batch are real; then only batches of its shape are taken.
        chat: How the edit's source (means, donors, what is patched from) is read, as in `score`;
            what the hooks edit is for the caller to put into the template.
        seed: Of the random draws.

    Raises:
        LensSkillsError: Units this model does not have, an edit without the source it needs, a
            span of text (hooks see no text), a position outside the pass.
    """
    adapter = with_soft_prompt(model, None, chat)
    return _placed(adapter, _bound(do, adapter, neurons, position, at, mask, seed))


def _placed(adapter: ModelAdapter, edits: dict[LayerSite, Hook]) -> list[tuple[str, Hook]]:
    """The hooks at the model's own hook points: features are read and written there."""
    found: list[tuple[str, Hook]] = []
    for (layer, site), hook in edits.items():
        name = f"blocks.{layer}.{site}"
        if name not in adapter.features:
            found.append((name, hook))
            continue
        for place, edit in feature_editors(adapter.features[name], hook):
            found.append((place, lambda activation, hook=None, edit=edit: edit(activation)))
    return found


@contextmanager
def edited(
    model: Any,
    neurons: Any,
    do: Edit,
    *,
    position: Position = -1,
    at: str = DEFAULT_SITE,
    mask: Bool[Tensor, "batch pos"] | None = None,
    chat: Chat = False,
    seed: int = 0,
) -> Iterator[Any]:
    """The model, edited inside the ``with``: ``with edited(model, neurons, scale(by=0)): …``.

    Works around anything that runs the model, ``model.generate`` included. Its own hooks are
    removed at the end, also after an exception; the user's stay. Arguments as in `hooks_of`.
    """
    adapter = with_soft_prompt(model, None, chat)
    first_widths: list[dict[LayerSite, int]] = []
    edits = _bound(do, adapter, neurons, position, at, mask, seed, first_widths)
    points = adapter.model.hook_dict
    attached: list[tuple[Any, Hook]] = []
    try:
        with _generating(adapter.model, position, first_widths):
            for name, hook in _placed(adapter, edits):
                point = points[name]
                point.add_hook(hook)
                attached.append((point, hook))
            yield model
    finally:
        # By identity, never reset_hooks(): the user's own hooks stay.
        for point, hook in attached:
            for handle in [handle for handle in point.fwd_hooks if handle.user_hook is hook]:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)


@contextmanager
def _generating(
    model: Any, position: Position, first_widths: list[dict[LayerSite, int]]
) -> Iterator[None]:
    """Inside, the model's own ``generate`` is known for one, and asks for no cache that is lost.

    A pass over the whole text so far is edited at every token from the prompt's last on, as the
    passes over one token are that keys and values make possible. ``first_widths`` holds, for each
    call under way, how many tokens the hooks saw on its first pass.
    """
    before = vars(model).get("generate")

    def known(generate: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            if loses_cache(model):
                given.setdefault("use_past_kv_cache", False)
            if given.get("use_past_kv_cache") is False and position not in (-1, "last", "all"):
                raise LensSkillsError(
                    f"position {position!r} loses count while a text grows. Use -1 or 'all'."
                )
            first_widths.append({})
            try:
                return generate(*args, **given)
            finally:
                first_widths.pop()

        return call

    try:
        if hasattr(model, "generate"):
            vars(model)["generate"] = known(model.generate)
        yield
    finally:
        vars(model).pop("generate", None)
        if before is not None:
            vars(model)["generate"] = before


def _bound(
    do: Edit,
    adapter: ModelAdapter,
    neurons: Any,
    position: Position,
    at: str,
    mask: Bool[Tensor, "batch pos"] | None,
    seed: int,
    first_widths: Sequence[dict[LayerSite, int]] = (),
) -> dict[LayerSite, Hook]:
    """What edits each hook point, bound to rows of a batch; each call takes the next draw.

    ``first_widths`` is that of `_generating`, where texts may be written.
    """
    units = parse_components(adapter, neurons, at=at)
    edit = do.sourced(neurons)
    reading = edited_positions(position)
    if any(isinstance(spot, Span) for spot in reading.spots):
        raise LensSkillsError(
            "hooks see columns of a batch, not text: a span cannot be found. Give an index, "
            "'last' or 'all'."
        )
    if edit.kind == "patch" and reading.ragged:
        raise LensSkillsError(
            "a patch at 'all' pairs the tokens of two prompts, which hooks do not know. Give "
            "single positions."
        )
    change = edit.bind(adapter, (), sites_of(units), position=position, seed=seed)

    def hook_at(spot: LayerSite, features: Int[Tensor, "1 feature"]) -> Hook:
        draws = count()

        # The layer is bound inside: a bridge hands hooks the name of an alias.
        def apply(activation: Tensor, hook: Any = None) -> Tensor:
            n_rows, n_columns = activation.shape[:2]
            columns, valid = columns_of(position, (n_rows, n_columns), mask)
            if first_widths and position in (-1, "last"):
                width = first_widths[-1].setdefault(spot, n_columns)
                if n_columns > width:  # the whole text so far, and not one new token
                    columns = torch.arange(width - 1, n_columns).expand(n_rows, -1)
                    valid = torch.ones_like(columns, dtype=torch.bool)
            rows = torch.arange(n_rows)
            where = EditRows(torch.zeros_like(rows), rows, columns, valid)
            return edit_activation(change, spot, features, activation, where, next(draws))[0]

        return apply

    return {
        spot: hook_at(spot, features)
        for stack in stack_sets([units])
        for spot, features in stack.features.items()
    }


def columns_of(
    position: Position, shape: tuple[int, int], mask: Bool[Tensor, "batch pos"] | None
) -> tuple[Int[Tensor, "batch spot"], Bool[Tensor, "batch spot"]]:
    """The columns of a batch that a position means, and which of them count.

    >>> columns_of([0, -1], (1, 4), torch.tensor([[True, True, True, False]]))[0].tolist()
    [[0, 2]]
    """
    n_rows, n_columns = shape
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool)
    elif mask.shape != shape:
        raise LensSkillsError(
            f"the mask has the shape {tuple(mask.shape)}, this forward pass {shape}: a mask is "
            "for passes over its own batch, not for generation."
        )
    reading, real = edited_positions(position), mask.cpu()
    if reading.ragged:
        return torch.arange(n_columns).expand(n_rows, -1), real
    # Columns of the real tokens first, in order.
    order, counts = real.int().argsort(dim=1, descending=True, stable=True), real.sum(1)
    columns = []
    for spot in reading.spots:
        assert isinstance(spot, int | str), "spans were refused"
        index = -1 if isinstance(spot, str) else spot
        if index >= 0 and n_columns == 1:
            raise LensSkillsError(
                f"position {index} counts the prompt's tokens, but this forward pass has a single "
                "one, as cached generation makes them. Use position=-1 or 'all', or generate with "
                "use_past_kv_cache=False."
            )
        place = counts + index if index < 0 else torch.full_like(counts, index)
        if bool(((place < 0) | (place >= counts)).any()):
            raise LensSkillsError(
                f"position {index} is outside a row of {int(counts.min())} tokens in this forward "
                "pass."
            )
        columns.append(order.gather(1, place[:, None])[:, 0])
    chosen = torch.stack(columns, dim=1)
    return chosen, torch.ones_like(chosen, dtype=torch.bool)


@contextmanager
def edited_torch(
    hf_model: nn.Module,
    neurons: Any,
    do: Edit,
    *,
    adapter: Any,
    position: Position = -1,
    at: str = DEFAULT_SITE,
    mask: Bool[Tensor, "batch pos"] | None = None,
    chat: Chat = False,
    seed: int = 0,
) -> Iterator[list[Any]]:
    """The handles of plain torch hooks that edit a Hugging Face model inside the ``with``.

    Where a unit is in that model is found by its values on a few tokens, and tried: the same edit
    must change the predictions there as it does in TransformerLens. The handles are removed at the
    end.

    Args:
        hf_model: The Hugging Face language model, not one a bridge wraps.
        neurons, do, position, at, mask, chat, seed: As in `hooks_of`.
        adapter: The same model in TransformerLens: it names the units and reads the edit's source.

    Raises:
        LensSkillsError: Another model; a unit that is no module's input or output there (scaled or
            normalised between modules, or of processed weights), or whose edit does something else.
    """
    reader = with_soft_prompt(adapter, None, chat)
    edits = _bound(do, reader, neurons, position, at, mask, seed)
    units = parse_components(reader, neurons, at=at)
    if named := [unit.name for unit in units if unit.hook_name in reader.features]:
        raise LensSkillsError(
            f"{named[0]} is a feature of a dictionary, which is at no module of a Hugging Face "
            "model. Edit it in TransformerLens: edited(…) or hooks_of(…)."
        )
    features = {spot: each[0] for st in stack_sets([units]) for spot, each in st.features.items()}
    places = torch_places(hf_model, reader, features)
    handles: list[Any] = []
    try:
        for spot, hook in edits.items():
            handles += places[spot].attach(hook)
        yield handles
    finally:
        for handle in handles:
            handle.remove()
