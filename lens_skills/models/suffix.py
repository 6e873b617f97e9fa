"""`Suffix`: the last columns of a batch, run again from any layer, many versions at once."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models.lens import check_shapes
from lens_skills.models.protocol import Editor, Reader

NO_EDITORS: Mapping[str, Editor] = {}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference from the clean log-probabilities; half precision is given `COARSE`."""
COARSE = 0.05


class CannotResume(Exception):
    """This model, or this state of it, does not let its upper blocks run alone; says why."""


class Suffix(ABC):
    """What a clean pass leaves behind, so that only its last columns need to run again.

    Many versions of an example (*sets*, since each stands for a set of edited units) share the
    keys and values of its unchanged columns. They are laid side by side on the position axis, as
    branches of a tree: a column sees the shared prefix and its own branch, at its own position.
    The model's own blocks do the work, so its hook points are reached as ever.

    Attributes:
        start: The first column that is run again.
        entering: The clean residual stream entering each block, and at last leaving the top one.
    """

    def __init__(self, lens: Any, mask: Bool[Tensor, "example pos"], start: int) -> None:
        self.lens, self.start = lens, start
        self.mask = mask.to(lens.device)
        self.width = int(mask.shape[1])
        self.entering: list[Float[Tensor, "example column d_model"]] = []
        self._gradients = False
        self._trees: dict[tuple[int, int], Tensor] = {}

    def run(
        self,
        residual: Float[Tensor, "set example column d_model"],
        layer: int,
        *,
        stop: int | None = None,
        editors: Mapping[str, Editor] = NO_EDITORS,
    ) -> Float[Tensor, "set example column d_model"]:
        """The residual stream after the last block (or entering block ``stop``).

        Args:
            residual: What enters block ``layer`` at the columns from `start` on.
            layer: The first block that runs.
            stop: The block before which it ends (None: none).
            editors: Per hook point; each is given ``[set * example, column, ...]``, the examples
                of the first set first.
        """
        n_sets = residual.shape[0]
        # Contiguous: some blocks take views of what they are given.
        tree = rearrange(residual, "set example column d -> example (set column) d").contiguous()
        layers = range(layer, self.lens.n_layers if stop is None else stop)
        rowwise = {name: self._on_rows(editor, n_sets) for name, editor in editors.items()}
        with self._evaluating(), self.lens._attached({}, rowwise) as called:
            with self._branching(layers, n_sets):
                for index in layers:
                    tree = self._block(index, tree, n_sets)
            self.lens._all_called(editors, called)
        return rearrange(tree, "example (set column) d -> set example column d", set=n_sets)

    def _on_rows(self, editor: Editor, n_sets: int) -> Editor:
        def edit(tree: Tensor) -> Tensor:
            rows = rearrange(tree, "e (s c) ... -> (s e) c ...", s=n_sets)
            tree = rearrange(editor(rows), "(s e) c ... -> e (s c) ...", s=n_sets)
            return tree.contiguous()

        return edit

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """What runs inside can be differentiated by the residual stream it is given."""
        self._gradients = True
        try:
            yield
        finally:
            self._gradients = False

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with self.lens._evaluating(), torch.set_grad_enabled(self._gradients):
            yield

    def clean(self, layer: int, n_sets: int) -> Float[Tensor, "set example column d_model"]:
        """``n_sets`` copies of the clean residual stream entering a block."""
        return repeat(self.entering[layer], "example column d -> set example column d", set=n_sets)

    def tree_of(
        self, layer: int, allowed: Bool[Tensor, "#example #head column pos"], n_sets: int
    ) -> Bool[Tensor, "#example #head branch key"]:
        """Who may look at whom in the tree, from who may in the clean pass; kept for next time."""
        if (layer, n_sets) not in self._trees:
            prefix = repeat(allowed[..., : self.start], "e h c k -> e h (s c) k", s=n_sets)
            own = allowed[..., self.start :]
            same = torch.eye(n_sets, dtype=torch.bool, device=own.device)
            branches = rearrange(same, "s t -> 1 1 s 1 t 1") & rearrange(
                own, "e h c k -> e h 1 c 1 k"
            )
            own = rearrange(branches, "e h s c t k -> e h (s c) (t k)")
            self._trees[layer, n_sets] = torch.cat([prefix, own], dim=-1)
        return self._trees[layer, n_sets]

    @property
    def n_bytes(self) -> int:
        """The size of what it keeps for later runs."""
        return sum(part.numel() * part.element_size() for part in [*self._kept(), *self.entering])

    @abstractmethod
    def _kept(self) -> Iterable[Tensor]:
        """The keys and values of all blocks."""

    @abstractmethod
    def _branching(self, layers: Sequence[int], n_sets: int) -> Any:
        """A context in which blocks read the tree; everything is put back afterwards."""

    @abstractmethod
    def _block(self, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        """One block on the tree."""

    @abstractmethod
    def normalise(self, residual: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The final norm of the residual stream."""

    @abstractmethod
    def logits(self, residual: Float[Tensor, "row k d_model"]) -> Float[Tensor, "row k d_vocab"]:
        """Logits of the residual stream after the last block, over the whole vocabulary."""

    def check(self, clean: Float[Tensor, "example d_vocab"]) -> None:
        """Nothing; raises `CannotResume` unless unedited columns give the clean pass's logits.

        Three versions run from the bottom, the second one disturbed: what is equal then is also
        independent of its neighbours.
        """
        residual = self.entering[0]
        noise = torch.linspace(-1, 1, residual.numel(), device=residual.device).view_as(residual)
        disturbed = residual + (residual.std() * noise).to(residual)
        out = self.run(torch.stack([residual, disturbed, residual]), 0)[:, :, -1]
        found = self.logits(out).double().log_softmax(-1)
        difference = float((found[[0, 2]] - clean.double().log_softmax(-1)).abs().amax())
        if not difference <= TOLERANCE.get(clean.dtype, COARSE):
            raise CannotResume(
                f"{self.lens.name}: upper blocks run alone differ from the whole model by "
                f"{difference:.1e} in log-probability"
            )


def prefill(
    lens: Any,
    tokens: Int[Tensor, "example pos"],
    mask: Bool[Tensor, "example pos"],
    *,
    start: int,
    readers: Mapping[str, Reader],
    clean: Float[Tensor, "example d_vocab"] | None = None,
    check: bool = True,
) -> Suffix:
    """The suffix of a batch from column ``start`` on, after one clean pass that feeds the readers.

    Args:
        lens: The model.
        tokens: Padded on the left.
        mask: Which of them are real.
        start: The first column to be run again.
        readers: Called on the way; they see whole rows, as in `Lens.forward`.
        clean: Logits of the last column from an ordinary pass, to check against (None: one more
            pass is made for them).
        check: Whether to run it once and compare; without, only what is known beforehand to go
            wrong is refused, and the caller compares what it computes itself.

    Raises:
        CannotResume: The user's own hooks are on the model, or its architecture does not allow
            it, which is found by comparing an unedited run with the clean pass.
    """
    from lens_skills.models.suffix_bridge import BridgeSuffix
    from lens_skills.models.suffix_hooked import HookedSuffix

    check_shapes(tokens, mask, None)
    if watched(lens):
        raise CannotResume(f"{lens.name} carries hooks of its user, which would see other shapes")
    kind = {"hooked": HookedSuffix, "bridge": BridgeSuffix}.get(lens.implementation)
    if kind is None:
        raise CannotResume(f"a {type(lens).__name__} runs whole")
    suffix = kind(lens, tokens, mask, start, readers)
    if not check:
        return suffix
    if clean is None:
        at = torch.full((len(tokens), 1), tokens.shape[1] - 1)
        clean = lens.forward(tokens, mask, readers={}, logits_at=at)[:, 0]
    suffix.check(clean)
    return suffix


def watched(lens: Any) -> bool:
    """Whether a user's hooks are on the model: TransformerLens hooks or torch hooks."""
    if any(point.fwd_hooks for point in lens._points.values()):
        return True
    hooks = (
        hook
        for part in lens._parts
        for attached in (part._forward_hooks, part._forward_pre_hooks)
        for hook in attached.values()
    )
    # The bridge works with torch hooks of its own, and transformers leaves some on every model
    # that was once asked for hidden states or attention patterns: they only look on.
    homes = {str(getattr(hook, "__module__", "")).split(".")[0] for hook in hooks}
    return bool(homes - {"transformer_lens", "transformers"})
