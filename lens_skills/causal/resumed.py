"""`Resumed`: what `forward_batch` takes for a model, but only the changed columns are run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations.encoding import Encoded
from lens_skills.causal.rows import Placement
from lens_skills.causal.stack import Stack, stack_editors
from lens_skills.models import Reader
from lens_skills.models.lens import rows_at
from lens_skills.models.suffix import Suffix, prefill


class Suffixes:
    """The suffixes of a batch: one for the prompts and one for each continuation a metric reads."""

    def __init__(
        self, lens: Any, batch: Sequence[Encoded], places: Mapping[int, Sequence[int]]
    ) -> None:
        self.lens, self.batch, self.places = lens, batch, places
        self._made: dict[bytes, Suffix] = {}

    def of(
        self,
        tokens: Int[Tensor, "example pos"],
        mask: Bool[Tensor, "example pos"],
        readers: Mapping[str, Reader],
        clean: Float[Tensor, "example d_vocab"] | None = None,
    ) -> Suffix:
        """The suffix of these tokens, from the first edited column on; made once.

        Raises:
            CannotResume: See `prefill`.
        """
        key = tokens.cpu().numpy().tobytes() + mask.cpu().numpy().tobytes()
        if key not in self._made:
            start = int(self.placement(mask).columns.min())
            self._made[key] = prefill(
                self.lens, tokens, mask, start=start, readers=readers, clean=clean
            )
        return self._made[key]

    def placement(self, mask: Bool[Tensor, "example pos"]) -> Placement:
        """Where the batch is edited under this padding."""
        starts = (mask.shape[1] - mask.sum(1)).tolist()
        index = [item.index for item in self.batch]
        return Placement.of(index, [self.places[item] for item in index], starts)


class Listening:
    """A lens that remembers the logits of its passes."""

    def __init__(self, lens: Any) -> None:
        self.lens = lens
        self.heard: list[Float[Tensor, "row k d_vocab"]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lens, name)

    def forward(self, *args: Any, **options: Any) -> Float[Tensor, "row k d_vocab"]:
        """As the lens's own."""
        self.heard.append(self.lens.forward(*args, **options))
        return self.heard[-1]


class Resumed:
    """One stack of edited sets, run from the block that changes on.

    Attributes:
        moved: Which rows the edit changed at all; known after a pass.
    """

    def __init__(
        self,
        suffixes: Suffixes,
        setting: Any,
        stack: Stack,
        draw: int,
        added: Float[Tensor, "set example pos d_model"] | None,
    ) -> None:
        self.suffixes, self.setting, self.stack, self.draw = suffixes, setting, stack, draw
        self.added = added
        self.moved = torch.zeros(len(stack.places) * len(suffixes.batch), dtype=torch.bool)
        # What forward_batch asks of a lens beside its forward pass.
        lens = suffixes.lens
        self.pad_id, self.device, self.decode = lens.pad_id, lens.device, lens.decode

    def run(self, suffix: Suffix, at: Placement) -> Float[Tensor, "set example column d_model"]:
        """The residual stream after the last block under the edit, at the suffix's columns."""
        n_sets, layer = len(self.stack.places), self.stack.bottom
        at = at.shifted(suffix.start)
        if self.added is None:
            rows = at.repeated(n_sets)
            editors, moved = stack_editors(self.setting.change, self.stack, rows, self.draw)
            out = suffix.run(suffix.clean(layer, n_sets), layer, editors=editors)
            self.moved |= moved
            return out
        # The block's own output is the clean one plus what the edited features write.
        residual = suffix.clean(layer + 1, n_sets).clone()
        columns = at.columns.to(residual.device)
        for pos in range(columns.shape[1]):
            examples = torch.arange(len(columns), device=residual.device)
            residual[:, examples, columns[:, pos]] += self.added[:, :, pos].to(residual)
        self.moved |= rearrange((self.added != 0).flatten(2).any(-1), "s e -> (s e)").cpu()
        return suffix.run(residual, layer + 1)

    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        mask: Bool[Tensor, "row pos"],
        *,
        readers: Mapping[str, Reader],
        logits_at: Int[Tensor, "row k"],
        editors: Mapping[str, Any],
    ) -> Float[Tensor, "row k d_vocab"]:
        """Logits at the given positions of rows that are the batch, once per set."""
        n_examples = len(self.suffixes.batch)
        assert len(tokens) == n_examples * len(self.stack.places), "rows are sets of whole batches"
        suffix = self.suffixes.of(tokens[:n_examples], mask[:n_examples], readers)
        out = self.run(suffix, self.suffixes.placement(mask[:n_examples]))
        rows = rearrange(out, "set example column d -> (set example) column d")
        return suffix.logits(rows_at(rows, logits_at - suffix.start))
