"""What prompts of a pass begin with alike, run once: which batches gain, and whether it is exact.

Demonstrations, templates, a chat's preamble, a soft prompt's vectors and the first, special token
are all found the same way: token ids are compared, so text that a tokenizer joins to what follows
counts as different. `PrefixedPasses` runs each batch behind what its prompts share; the first one
is run both ways, two prompts of it, and where numbers differ all go the plain way.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_skills.activations.continuations import longest, pad_left, read_of
from lens_skills.activations.forward import (
    Encoded,
    ForwardPass,
    RequiredOutputs,
    answer_places,
)
from lens_skills.errors import LensSkillsError
from lens_skills.models import EditHook, ReadHook, keep_activation
from lens_skills.models.adapter import NO_EDITORS, layer_of
from lens_skills.models.kept_prefix import KeptPrefix, keep_prefix, may_keep
from lens_skills.models.partial_run import CannotResume
from lens_skills.models.rounding import TOLERANCE, distance
from lens_skills.models.user_hooks import watched

SAVES = 64
"""Columns that must be saved before a prefix is run on its own.

One more pass, of a single row, costs as much as thirty columns of a batch (blocks of width 576, one
core), and the first one on a model also a trial.
"""

Gather = Callable[[Sequence[Encoded], KeptPrefix | None], Sequence[Any]]
"""The `PositionGather`s of a batch, behind a prefix or not."""


def shared_length(rows: Sequence[Sequence[int] | np.ndarray]) -> int:
    """How many tokens all rows begin with, and go on after.

    >>> shared_length([[1, 2, 3, 4], [1, 2, 5]]), shared_length([[1, 2], [1, 2]])
    (2, 1)
    """
    first, length = np.asarray(rows[0]), min(map(len, rows)) - 1
    for row in rows[1:]:
        same = first[:length] == np.asarray(row)[:length]
        if not same.all():
            length = int(same.argmin())
    return length


def by_beginning(encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    """The examples in groups that begin alike, where telling them apart saves columns.

    Of a group, those whose next token is the same are set apart if what they share beyond the
    group saves more columns than the passes of one more group cost.
    """
    groups: list[list[Encoded]] = []
    open_groups = [list(encoded)] if encoded else []
    while open_groups:
        group = open_groups.pop()
        shared = shared_length([item.prompt_tokens for item in group])
        branches: dict[int, list[Encoded]] = defaultdict(list)
        for item in group:
            branches[int(item.prompt_tokens[shared])].append(item)
        rest: list[Encoded] = []
        for branch in branches.values():
            more = shared_length([item.prompt_tokens for item in branch]) - shared
            apart = len(branches) > 1 and (len(branch) - 1) * more >= 2 * SAVES
            if apart:
                open_groups.append(branch)
            else:
                rest.extend(branch)
        if rest:
            groups.append(rest)
    return sorted(groups, key=lambda group: min(item.index for item in group))


def _key(tokens: Sequence[int] | np.ndarray) -> bytes:
    """Bytes that sort as the tokens do, and begin alike where they do."""
    return np.asarray(tokens, dtype=">i4").tobytes()


class PrefixedPasses:
    """Runs the batches of one pass, each behind what its prompts share where that saves.

    What a group of prompts begins with (`by_beginning`) is kept for all its batches, what a batch
    shares beyond it as long as batches begin so. The MLP of the last block runs only where
    something is read.

    Attributes:
        able: Whether anything but the plain way is tried.
        prefix: What the last batch was run behind.
    """

    def __init__(
        self,
        adapter: Any,
        encoded: Sequence[Encoded],
        plan: RequiredOutputs,
        gather: Gather = lambda batch, prefix: (),
        reads: str = "",
    ) -> None:
        """``gather`` makes what reads a batch, and ``reads`` says what it reads, in words."""
        self.adapter, self.encoded, self.plan, self.gather = adapter, encoded, plan, gather
        self.able = may_keep(adapter)
        self.prefix: KeptPrefix | None = None
        self.kept: list[KeptPrefix] = []
        self.common: dict[int, int] = {}
        for group in by_beginning(encoded):
            shared = shared_length([item.prompt_tokens for item in group])
            worth = (len(group) - 1) * shared >= SAVES
            self.common |= {item.index: shared if worth else 0 for item in group}
        self.longest = max((len(item.prompt_tokens) for item in encoded), default=0)
        self.verdicts = _VERDICTS.setdefault(adapter.model, {})
        soft = None if adapter.soft is None else adapter.soft.digest
        self.about = (reads, plan, adapter.dtype, adapter.precision, soft, adapter.chat)

    def of(self, batch: Sequence[Encoded]) -> tuple[Sequence[Any], ForwardPass | None]:
        """What gathers a batch's activations, and what runs it (None: the adapter as ever)."""
        if not self.able or watched(self.adapter):
            return self.gather(batch, None), None
        self.prefix = prefix = self._prefix_of(batch)
        verdict = self._verdict("rows") if prefix is None else self._verdict("prefix", prefix)
        if prefix is None and not (verdict.narrow and not any(map(self._n_branches, batch))):
            return self.gather(batch, None), None
        parts = self.gather(batch, prefix)
        return parts, self._run(prefix, parts, narrow=verdict.narrow)

    def _prefix_of(self, batch: Sequence[Encoded]) -> KeptPrefix | None:
        """The prefix to run a batch behind: the kept one, a new one, or none."""
        known = self.verdicts.get(("prefix", *self.about))
        if known is not None and not known.exact:
            return None
        rows = [item.prompt_tokens for item in batch]
        shared, length = shared_length(rows), self.common[batch[0].index]
        if shared < length or (len(batch) - 1) * (shared - length) >= SAVES:
            length = shared
        if not self._saves(batch, length):
            return None
        self.kept = [prefix for prefix in self.kept if prefix.begins(rows[0])]
        prefix = next((prefix for prefix in self.kept if len(prefix) == length), None)
        if prefix is None or self._lacks(prefix, batch):
            prefix = self._new(rows[0][:length].tolist(), batch)
            if prefix is not None:
                self.kept = [*(p for p in self.kept if len(p) < length), prefix]
        return prefix

    def _saves(self, batch: Sequence[Encoded], length: int) -> bool:
        """Whether the prefix is more than a little of the rows, and of what else is scored.

        Continuations that are not in the rows share their prompt where no prefix is used, and are
        whole rows behind one.
        """
        rest = [len(item.prompt_tokens) - length for item in batch]
        branches = sum(n * self._n_branches(i) for n, i in zip(rest, batch, strict=True))
        return length * len(batch) > max(_SHARE * sum(rest), branches)

    def _new(self, tokens: Sequence[int], batch: Sequence[Encoded]) -> KeptPrefix | None:
        """A prefix, run; None where the trial says that it is not exact."""
        known = self.verdicts.get(("prefix", *self.about))
        pair, prefix = self._pair(tokens), None
        with suppress(*_REFUSALS) if known is None else nullcontext():
            prefix = self._keep(tokens, reading=self._reads([*batch, *pair], len(tokens)))
        if prefix is not None and self._verdict("prefix", prefix).exact:
            return prefix
        self.verdicts["prefix", *self.about] = _Verdict(False, False, self.longest)
        return None

    def _lacks(self, prefix: KeptPrefix, batch: Sequence[Encoded]) -> bool:
        """Whether the batch reads what the prefix did not keep."""
        return not prefix.read and self._reads(batch, len(prefix))

    def _n_branches(self, item: Encoded) -> int:
        """How many continuations do not stand in the prompt's own row."""
        paths = read_of(self.plan.continuations(item), stop=self.plan.stop)
        chain = longest(paths)
        return len({path for path in paths if path != chain[: len(path)]})

    def _verdict(self, way: str, prefix: KeptPrefix | None = None) -> "_Verdict":
        """Whether a way is exact, by a trial where none has been made of prompts as long."""
        key = (way, *self.about)
        known = self.verdicts.get(key)
        if known is not None and known.longest >= self.longest:
            return known
        if prefix is None and len(self.encoded) < _WORTH_A_TRIAL:
            return _Verdict(True, False, 0)
        pair = self._pair(() if prefix is None else prefix.tokens)
        plain = self._outcome(pair, self.gather(pair, None), self.adapter.forward)
        narrow = self._is_exact(pair, plain, prefix, narrow=True)
        exact = narrow or prefix is None or self._is_exact(pair, plain, prefix, narrow=False)
        self.verdicts[key] = _Verdict(exact, narrow, self.longest)
        return self.verdicts[key]

    def _pair(self, begins: Sequence[int]) -> list[Encoded]:
        """The shortest and the longest prompt, of those that begin so and go on."""
        keys, order, lengths = self._sorted
        begin = _key(begins)
        # Behind every row that begins so: no token's first byte is 255.
        places = slice(bisect_left(keys, begin), bisect_left(keys, begin + b"\xff"))
        longer = lengths[places] > len(begins)
        found, sizes = order[places][longer], lengths[places][longer]
        ends = found[sizes == sizes.min()].min(), found[sizes == sizes.max()].max()
        return [self.encoded[place] for place in ends]

    @cached_property
    def _sorted(self) -> tuple[list[bytes], np.ndarray, np.ndarray]:
        """The prompts in the order of their tokens: those that begin alike stand together."""
        rows = [_key(item.prompt_tokens) for item in self.encoded]
        order = np.array(sorted(range(len(rows)), key=rows.__getitem__))
        lengths = np.array([len(self.encoded[place].prompt_tokens) for place in order])
        return [rows[place] for place in order], order, lengths

    def _reads(self, batch: Sequence[Encoded], length: int) -> bool:
        """Whether something is read within the first tokens."""
        return any(part.first < length for part in self.gather(batch, None))

    def _keep(self, tokens: Sequence[int], *, reading: bool) -> KeptPrefix:
        names = [name for part in self.gather(self.encoded[:1], None) for name in part.readers()]
        through = self.adapter.n_layers - 1
        if not self.plan.logits:
            through = max([layer_of(name) or 0 for name in names], default=0)
        kept: dict[str, Tensor] = {}
        readers = {name: keep_activation(kept, name) for name in names} if reading else {}
        prefix = keep_prefix(self.adapter, tokens, through=through, readers=readers)
        prefix.read.update(kept)
        return prefix

    def _run(self, prefix: KeptPrefix | None, parts: Sequence[Any], *, narrow: bool) -> ForwardPass:
        def run(
            tokens: Int[Tensor, "batch pos"],
            mask: Bool[Tensor, "batch pos"],
            *,
            readers: Mapping[str, ReadHook],
            logits_at: Int[Tensor, "batch k"] | None,
            editors: Mapping[str, EditHook] = NO_EDITORS,
        ) -> Tensor | None:
            assert not editors, "edits are given whole rows"
            read_at = tokens.new_empty(len(tokens), 0) if narrow else None
            if readers and narrow:
                read_at = parts[0].columns
                for part in parts:
                    part.n_columns(0 if logits_at is None else logits_at.shape[1])
            if prefix is not None:
                # Directly behind the prefix, and padded at the end.
                left, shift = tokens.shape[1] - len(prefix), (~mask).sum(1, keepdim=True)
                columns = shift + len(prefix) + torch.arange(left, device=mask.device)
                mask, columns = columns < tokens.shape[1], columns.clamp(max=tokens.shape[1] - 1)
                tokens = tokens.gather(1, columns).masked_fill(~mask, self.adapter.pad_id)
                if logits_at is not None:
                    logits_at = logits_at - shift.to(logits_at.device) - len(prefix)
            return self.adapter.forward(
                tokens, mask, readers=readers, logits_at=logits_at, after=prefix, read_at=read_at
            )

        return run

    def _is_exact(
        self,
        pair: Sequence[Encoded],
        plain: "_Outcome",
        prefix: KeptPrefix | None,
        *,
        narrow: bool,
    ) -> bool:
        try:
            parts = self.gather(pair, prefix)
            found = self._outcome(pair, parts, self._run(prefix, parts, narrow=narrow))
        except _REFUSALS:
            return False
        return self._same(found, plain)

    def _outcome(
        self, pair: Sequence[Encoded], parts: Sequence[Any], run: ForwardPass
    ) -> "_Outcome":
        extra = [self.plan.extra(item) for item in pair]
        rows = [[*i.prompt_tokens.tolist(), *more] for i, more in zip(pair, extra, strict=True)]
        tokens, mask = pad_left(rows, self.adapter.pad_id, self.adapter.device)
        places = answer_places([len(more) for more in extra], tokens.shape[1]).to(tokens.device)
        readers = {name: reader for part in parts for name, reader in part.readers().items()}
        logits = run(tokens, mask, readers=readers, logits_at=places if self.plan.logits else None)
        return logits, [part.result()[0] for part in parts]

    def _same(self, found: "_Outcome", plain: "_Outcome") -> bool:
        if plain[0] is not None:
            assert found[0] is not None
            shares = [logits.double().log_softmax(-1) for logits in (found[0], plain[0])]
            gap, allowed = distance(self.adapter, *shares)
            if not gap <= allowed:
                return False
        full = self.adapter.dtype in TOLERANCE and not self.adapter.packed
        full = full and self.adapter.precision is None
        for one, other in zip(found[1], plain[1], strict=True):
            # Per layer, against its largest number; half precision scatters.
            gaps = (one - other).abs().movedim(-2, 0).flatten(1)
            sizes = other.abs().movedim(-2, 0).flatten(1)
            gaps, sizes = (gaps.amax(1), sizes.amax(1)) if full else (gaps.mean(1), sizes.mean(1))
            allowed = TOLERANCE[self.adapter.dtype] if full else _HALF
            if not bool((gaps <= allowed * sizes).all()):
                return False
        return True


@dataclass(frozen=True)
class _Verdict:
    exact: bool
    narrow: bool
    longest: int


_Outcome = tuple[Tensor | None, list[Tensor]]
"""Logits, and what was read."""

_VERDICTS: WeakKeyDictionary[Any, dict[Any, _Verdict]] = WeakKeyDictionary()
"""By model: which ways were tried for what is read, and of which longest prompt."""

_WORTH_A_TRIAL = 64
"""Examples from which the trial (two prompts, twice) costs less than it may save."""

_SHARE = 1 / 16
"""Of the rows' remaining tokens: a shorter prefix saves no more than its keys and values cost."""

_HALF = 0.1
"""Mean difference allowed in half precision, as a share of the mean size."""

_REFUSALS = (
    CannotResume, LensSkillsError, AssertionError, AttributeError, IndexError, KeyError,
    NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""How a model says, in a trial, that it keeps no keys, or a hook point that it has other shapes."""
