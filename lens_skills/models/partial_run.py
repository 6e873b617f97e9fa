"""`PartialForward`: the last columns of a batch, run again from any layer, many versions at once.

The prefix stays as it was; only from the first changed column and block on is anything computed. A
HookedTransformer's own blocks run with their attention laid out as a tree; a TransformerBridge's
are called as the Hugging Face model calls them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models.adapter import NO_EDITORS, EditHook
from lens_skills.models.branches import Branches, Layout
from lens_skills.models.memory import out_of_memory
from lens_skills.models.rounding import distance
from lens_skills.models.stored_weights import check_gradients

TREE_COLUMNS = 64
"""Of one tree: each column is compared with all of them, and each tree has a copy of the prefix."""


_LARGE = 10.0  # nats: log-probabilities beyond it are rounded by more than the tolerance is for


class CannotResume(Exception):
    """This model, or this state of it, does not let its upper blocks run alone; says why."""


class PartialForward(ABC):
    """What a clean pass leaves behind, so that only its last columns need to run again.

    Many versions of an example (*sets*, since each stands for a set of edited units) share the
    keys and values of its unchanged columns. They are laid side by side on the position axis, as
    branches of a tree: a column sees the shared prefix and its own branch, at its own position.
    More than fit into one tree stand in several, side by side on the batch axis: what a column
    costs does not grow with the number of sets. The model's own blocks do the work, so its hook
    points are reached as ever.

    Attributes:
        start: The first column that is run again.
        width: Columns of the batch. Behind them, a set has its `Branches`, if there are any.
        n_columns: Columns that are run again for one set.
        entering: The clean residual stream entering each block, and at last leaving the top one.
    """

    def __init__(
        self,
        adapter: Any,
        mask: Bool[Tensor, "example pos"],
        start: int,
        branches: Branches | None = None,
        after: Any = None,
    ) -> None:
        self.adapter, self.start, self.after = adapter, start, after
        # Columns of the `KeptPrefix`, which are there already.
        self.before = 0 if after is None else len(after)
        self.mask = mask.to(adapter.device)
        self.width = int(mask.shape[1])
        self.branches = None if branches is None else branches.to(self.mask.device)
        self.layout = self._layout(start)
        self.n_columns = self.layout.n_columns
        self.entering: list[Float[Tensor, "example column d_model"]] = []
        self._gradients = False
        self._trees: dict[tuple[int, int], Tensor] = {}
        self._several: bool | None = None  # whether several trees give what one does; None: untried

    def _layout(self, start: int) -> Layout:
        return Layout.of(len(self.mask), start, self.width, self.branches, self.mask.device)

    def _read_branches(self) -> None:
        """The branches' clean residual stream, behind all columns of the rows."""
        assert self.branches is not None
        layout, n_row = self.layout, self.width - self.start
        self.layout = self._layout(self.width)
        positions = (self.mask.long().cumsum(1) - 1).gather(1, self.branches.places)
        with self._evaluating():
            tree = self._embed(self.branches.tokens, positions)
            layers = range(self.adapter.n_layers)
            with self._branching(layers, 1):
                for layer in layers:
                    self.entering[layer] = torch.cat([self.entering[layer], tree], dim=1)
                    tree = self._block(layer, tree, 1)
        self.entering[-1] = torch.cat([self.entering[-1], tree], dim=1)
        if n_row:
            self.layout = layout
            self._trees.clear()

    @abstractmethod
    def _embed(
        self, tokens: Int[Tensor, "example branch"], positions: Int[Tensor, "example branch"]
    ) -> Float[Tensor, "example branch d_model"]:
        """What enters block 0 where these tokens stand at these positions."""

    def run(
        self,
        residual: Float[Tensor, "set example column d_model"],
        layer: int,
        *,
        stop: int | None = None,
        editors: Mapping[str, EditHook] = NO_EDITORS,
    ) -> Float[Tensor, "set example column d_model"]:
        """The residual stream after the last block (or entering block ``stop``).

        Args:
            residual: What enters block ``layer`` at the columns from `start` on.
            layer: The first block that runs.
            stop: The block before which it ends (None: none).
            editors: Per hook point; each is given ``[set * example, column, ...]``, the examples
                of the first set first.
        """
        n_trees = self._n_trees(len(residual))
        if n_trees > 1 and self._several is None:
            self._several = self._check_several()
        return self._run(residual, layer, stop, editors, n_trees if self._several else 1)

    def _n_trees(self, n_sets: int) -> int:
        """Into how many equal trees so many sets go, each of at most `TREE_COLUMNS` columns."""
        most = max(1, TREE_COLUMNS // max(1, self.n_columns))
        return next(n for n in range(1, n_sets + 1) if n_sets % n == 0 and n_sets // n <= most)

    def _check_several(self) -> bool:
        """Whether two sets in trees of their own come out as in one."""
        residual = self.entering[0]
        noise = torch.linspace(-1, 1, residual.numel(), device=residual.device).view_as(residual)
        both = torch.stack([residual, residual + (residual.std() * noise).to(residual)])
        found, at = [], [self.width - self.start - 1, -1]
        for n_trees in (1, 2):
            try:
                out = self._run(both, 0, None, NO_EDITORS, n_trees)[:, :, at].flatten(0, 1)
            except (
                Exception
            ) as error:  # whatever a block makes of more rows than it was called with
                if n_trees == 1 or out_of_memory(error):
                    raise
                return False
            found.append(self.logits(out).double().log_softmax(-1))
        one, two = found
        difference, allowed = distance(self.adapter, two, one)
        return bool(difference <= allowed)

    def _run(
        self,
        residual: Float[Tensor, "set example column d_model"],
        layer: int,
        stop: int | None,
        editors: Mapping[str, EditHook],
        n_trees: int,
    ) -> Float[Tensor, "set example column d_model"]:
        size = len(residual) // n_trees
        # Contiguous: some blocks take views of what they are given.
        tree = rearrange(residual, "(t s) e c d -> (t e) (s c) d", t=n_trees).contiguous()
        layers = range(layer, self.adapter.n_layers if stop is None else stop)
        rowwise = {name: self._on_rows(one, n_trees, size) for name, one in editors.items()}
        with self._evaluating(), self.adapter._attached({}, rowwise) as called:
            with self._branching(layers, size):
                for index in layers:
                    tree = self._block(index, tree, size)
            self.adapter._all_called(editors, called)
        return rearrange(tree, "(t e) (s c) d -> (t s) e c d", t=n_trees, s=size)

    def _on_rows(self, editor: EditHook, n_trees: int, size: int) -> EditHook:
        def edit(tree: Tensor) -> Tensor:
            rows = rearrange(tree, "(t e) (s c) ... -> (t s e) c ...", t=n_trees, s=size)
            new = editor(rows)
            tree = rearrange(new, "(t s e) c ... -> (t e) (s c) ...", t=n_trees, s=size)
            return tree.contiguous()

        return edit

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """What runs inside can be differentiated by the residual stream it is given."""
        check_gradients(self.adapter.name, self.adapter._modules().parameters())
        self._gradients = True
        try:
            yield
        finally:
            self._gradients = False

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with self.adapter._evaluating(), torch.set_grad_enabled(self._gradients):
            yield

    def clean(self, layer: int, n_sets: int) -> Float[Tensor, "set example column d_model"]:
        """``n_sets`` copies of the clean residual stream entering a block."""
        return repeat(self.entering[layer], "example column d -> set example column d", set=n_sets)

    def tree_of(
        self, layer: int, allowed: Bool[Tensor, "#example #head column pos"], n_sets: int
    ) -> Bool[Tensor, "#example #head branch key"]:
        """Who may look at whom in the tree, from who may in the row; kept for next time.

        ``allowed`` holds the row's columns from `Layout.first` on.
        """
        if (layer, n_sets) not in self._trees:
            here = self.layout.taken(allowed, 2, self.width - allowed.shape[2])
            self._trees[layer, n_sets] = self.layout.tree(here, n_sets)
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
        """One block on the trees of ``n_sets`` sets each, one or more per example."""

    def normalise(self, residual: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The final norm of the residual stream."""
        with self._evaluating():
            return self.adapter.model.ln_final(residual)

    @abstractmethod
    def logits(self, residual: Float[Tensor, "row k d_model"]) -> Float[Tensor, "row k d_vocab"]:
        """Logits of the residual stream after the last block, over the whole vocabulary."""

    def check(self, clean: Float[Tensor, "row d_vocab"], rows: Sequence[int]) -> None:
        """Nothing; raises `CannotResume` unless unedited columns give the clean pass's logits.

        ``clean`` are an ordinary pass's, of the last column of some rows. Three versions of all
        rows run from the bottom, the second one disturbed: what is equal then is also independent
        of its neighbours. Compared are the rows' last column and their last branches.
        """
        residual, at = self.entering[0], self.width - self.start - 1
        noise = torch.linspace(-1, 1, residual.numel(), device=residual.device).view_as(residual)
        disturbed = residual + (residual.std() * noise).to(residual)
        out = self.run(torch.stack([residual, disturbed, residual]), 0)
        own = self.logits(self.entering[-1][:, at, None])[:, 0]
        self._near(own[rows], clean)
        self._near(self.logits(out[[0, 2], :, at]), own)
        if self.branches is not None:
            every = torch.arange(len(residual), device=residual.device)
            last = self.branches.last + at + 1
            self._near(self.logits(out[[0, 2]][:, every, last]), self._branch_logits(every))

    def check_branches(self, tokens: Int[Tensor, "example pos"], n_rows: int = 2) -> None:
        """Nothing; raises `CannotResume` unless some last branches give an ordinary pass's logits.

        Tried are the row of most padding and those of most branches.
        """
        assert self.branches is not None
        counts, lengths = self.branches.real.sum(1).tolist(), self.mask.sum(1).tolist()
        some = [row for row, count in enumerate(counts) if count]
        most = sorted(some, key=lambda row: -counts[row])
        chosen = list(dict.fromkeys([min(some, key=lengths.__getitem__), *most]))[:n_rows]
        rows = [self._plain_row(tokens, row) for row in chosen]
        width = max(map(len, rows))
        padding = [[self.adapter.pad_id] * (width - len(row)) for row in rows]
        plain = torch.tensor([[*pad, *row] for pad, row in zip(padding, rows, strict=True)])
        mask = torch.tensor([[k >= len(pad) for k in range(width)] for pad in padding])
        at = torch.full((len(rows), 1), width - 1)
        wanted = self.adapter.forward(plain, mask, readers={}, logits_at=at)[:, 0]
        self._near(self._branch_logits(torch.tensor(chosen)), wanted)

    def _plain_row(self, tokens: Int[Tensor, "example pos"], row: int) -> list[int]:
        """What an ordinary pass reads to reach a row's last branch."""
        assert self.branches is not None
        join, path = self.branches.path(row, int(self.branches.last[row]))
        before = tokens[row, : join + 1][self.mask[row, : join + 1].to(tokens.device)]
        return [*before.tolist(), *self.branches.tokens[row, path].tolist()]

    def _branch_logits(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_vocab"]:
        """Clean logits at the last branch of some rows."""
        assert self.branches is not None
        rows = rows.to(self.mask.device)
        at = self.branches.last[rows] + self.width - self.start
        return self.logits(self.entering[-1][rows, at][:, None])[:, 0]

    def _near(self, found: Float[Tensor, "*set row d_vocab"], wanted: Tensor) -> None:
        found, wanted = found.double().log_softmax(-1), wanted.double().log_softmax(-1)
        difference, allowed = distance(self.adapter, found, wanted.to(found.device))
        # Rounding grows with the numbers that are rounded.
        if not difference <= allowed * max(1.0, float(wanted.abs().amax()) / _LARGE):
            raise CannotResume(
                f"{self.adapter.name}: upper blocks run alone differ from the whole model by "
                f"{difference:.1e} in log-probability"
            )


def behind(kept: Tensor, new: Tensor, dim: int) -> Tensor:
    """What was kept of each example, and behind it what is new, of one or more trees of each.

    >>> behind(torch.zeros(1, 1), torch.ones(2, 1), 1).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    """
    n_trees = len(new) // len(kept)
    if n_trees == 1:
        return torch.cat([kept, new], dim)
    both = kept.expand(n_trees, *kept.shape), new.unflatten(0, (n_trees, -1))
    return torch.cat(both, dim + 1).flatten(0, 1)
