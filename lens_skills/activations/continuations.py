"""`ContinuationTree`: answers, foils and options behind the prompts of a batch, read once each.

What continuations have in common is read once: a prompt's row holds the longest of them, the others
are branches behind the same keys and values. `Scores` are log-probabilities read off it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models import EditHook, ReadHook
from lens_skills.models.branches import Branches
from lens_skills.models.partial_forward import PartialForward

Path = tuple[int, ...]
Chunk = tuple[Int[Tensor, " row"], Float[Tensor, "row d_vocab"]]
"""Some places of a tree, numbered example by example (set by set), and the logits there."""

Padding = Literal["left", "right", "ends"]

ForwardPass = Callable[..., Any]
"""Takes what `ModelAdapter.forward` takes, and gives what it gives."""

_ROWS = 128  # whose logits over the whole vocabulary are held at once


@dataclass(frozen=True, eq=False)
class ContinuationTree:
    """The tokens of a batch, padded on the left, and of each continuation where it is predicted.

    Attributes:
        tokens, mask: Each row a prompt and the longest continuation that must be read.
        branches: What of the other continuations is not in the row; None where nothing is.
        columns: The column that predicts, of each *place*: the prompt's end, the row's tokens
            after it, the branches (columns from the row's width on).
        real: Which places an example has.
        at: By continuation and step, the place that predicts; -1 past its end.
        following: The token that follows there.
        ends: The place after the first continuation where that is read, else -1.
        starts: The column at which each prompt begins.
    """

    tokens: Int[Tensor, "example pos"]
    mask: Bool[Tensor, "example pos"]
    branches: Branches | None
    columns: Int[Tensor, "example place"]
    real: Bool[Tensor, "example place"]
    at: Int[Tensor, "example continuation step"]
    following: Int[Tensor, "example continuation step"]
    ends: Int[Tensor, " example"]

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[Path]],
        *,
        stop: bool,
        pad: int,
        device: Any,
        padding: Padding = "left",
    ) -> "ContinuationTree":
        """The tree of some prompts and the continuations of each.

        Args:
            prompts, continuations: Of each example, in tokens.
            stop: Whether what follows the first continuation is predicted too.
            pad: The token that fills rows.
            device: Where the tokens are to be.
            padding: Where rows are filled. ``"ends"``: on the left until all prompts end in one
                column, then on the right.
        """
        read = [read_of(each, stop=stop) for each in continuations]
        chains = [longest(each) for each in read]
        deepest = max(map(len, chains))
        rows = [[*prompt, *chain] for prompt, chain in zip(prompts, chains, strict=True)]
        widest, filled = max(map(len, rows)), [0] * len(rows)
        if padding == "right":
            filled = [widest - len(row) for row in rows]
        elif padding == "ends":
            filled = [deepest - len(chain) for chain in chains]
        rows = [[*row, *[pad] * n] for row, n in zip(rows, filled, strict=True)]
        tokens, mask = pad_left(rows, pad, device)
        width = tokens.shape[1]
        nodes = [_branches_of(*pair) for pair in zip(read, chains, strict=True)]
        n_branches = max(map(len, nodes))
        n_steps = max((len(path) for each in continuations for path in each), default=0)
        n_paths = max(map(len, continuations))
        size = len(rows)
        columns = np.empty((size, 1 + deepest + n_branches), dtype=np.int64)
        real = np.zeros(columns.shape, dtype=bool)
        at = np.full((size, n_paths, n_steps), -1, dtype=np.int64)
        following = np.zeros_like(at)
        ends = np.full(size, -1, dtype=np.int64)
        branches = _Filled(size, n_branches, pad) if n_branches else None
        for row, (chain, own) in enumerate(zip(chains, nodes, strict=True)):
            last = width - 1 - len(chain) - filled[row]  # of the prompt
            columns[row, : 1 + deepest] = np.minimum(last + np.arange(1 + deepest), width - 1)
            columns[row, 1 + deepest :] = width + np.arange(n_branches)
            real[row, : 1 + len(chain)] = True
            real[row, 1 + deepest : 1 + deepest + len(own)] = True
            if branches is not None:
                branches.fill(row, last, chain, own)

            def place(path: Path, chain: Path = chain, own: dict[Path, int] = own) -> int:
                length = len(path)
                return length if path == chain[:length] else 1 + deepest + own[path]

            for number, path in enumerate(continuations[row]):
                at[row, number, : len(path)] = [place(path[:k]) for k in range(len(path))]
                following[row, number, : len(path)] = path
            if stop:
                ends[row] = place(continuations[row][0])
        parts = (torch.from_numpy(part) for part in (columns, real, at, following, ends))
        return cls(tokens, mask, branches and branches.made().to(tokens.device), *parts)

    @property
    def start(self) -> int:
        """The first column that predicts a continuation."""
        return int(self.columns[:, 0].min())

    @property
    def starts(self) -> list[int]:
        """The column at which each prompt begins."""
        return (self.mask.shape[1] - self.mask.sum(1)).tolist()

    def suffix_logits(
        self, suffix: PartialForward, out: Float[Tensor, "set example column d_model"]
    ) -> Iterator[Chunk]:
        """Logits at all places of several sets, from what leaves the last block."""
        n_sets, n_examples, n_places = len(out), *self.real.shape
        examples, places = self.real.nonzero(as_tuple=True)
        columns = self.columns[examples, places] - suffix.start
        rows = out[:, examples.to(out.device), columns.to(out.device)].flatten(0, 1)
        each = torch.arange(n_sets)[:, None] * (n_examples * n_places)
        numbers = (each + (examples * n_places + places)).flatten()
        for start in range(0, len(numbers), _ROWS):
            part = slice(start, start + _ROWS)
            yield numbers[part], suffix.logits(rows[part, None])[:, 0]

    def plain_logits(
        self,
        forward: ForwardPass,
        readers: Mapping[str, ReadHook],
        editors: Callable[[Sequence[int], Sequence[int]], Mapping[str, EditHook]],
        pad: int,
    ) -> Iterator[Chunk]:
        """Logits at all places from ordinary passes: the rows, then a row for each branch's end.

        Args:
            forward: What runs the passes.
            readers: Hooks of the first pass.
            editors: From the examples of a pass and the columns at which their prompts begin:
                the hooks that edit it.
            pad: The token that fills rows.
        """
        n_examples, n_places = self.real.shape
        n_row = n_places - (0 if self.branches is None else self.branches.n)
        logits = forward(
            self.tokens,
            self.mask,
            readers=readers,
            logits_at=self.columns[:, :n_row].to(self.tokens.device),
            editors=editors(range(n_examples), self.starts),
        )
        here = self.real[:, :n_row]
        numbers = torch.arange(n_examples * n_places).view(n_examples, n_places)
        yield numbers[:, :n_row][here], logits[here.to(logits.device)]
        paths = list(self._branch_rows())
        for start in range(0, len(paths), n_examples):
            part = paths[start : start + n_examples]
            rows = [row for _, row, _ in part]
            tokens, mask = pad_left(rows, pad, self.tokens.device)
            width, most = tokens.shape[1], max(len(new) for _, _, new in part)
            # The newest tokens of a row are at its end.
            places = (width - most) + torch.arange(most).repeat(len(part), 1)
            logits = forward(
                tokens,
                mask,
                readers={},
                logits_at=places.to(tokens.device),
                editors=editors([e for e, _, _ in part], [width - len(row) for row in rows]),
            )
            found = [
                (row, most - len(new) + k, e * n_places + n_row + branch)
                for row, (e, _, new) in enumerate(part)
                for k, branch in enumerate(new)
            ]
            index = torch.tensor(found)
            yield index[:, 2], logits[index[:, 0].to(logits.device), index[:, 1].to(logits.device)]

    def _branch_rows(self) -> Iterator[tuple[int, list[int], list[int]]]:
        """An example, what is read to a branch's end, and the branches on the way not yet seen."""
        if self.branches is None:
            return
        for example, (tokens, mask) in enumerate(zip(self.tokens, self.mask, strict=True)):
            seen: set[int] = set()
            mine = self.branches.real[example].nonzero()[:, 0].tolist()
            leads = self.branches.sees[example]
            ends = [b for b in mine if int(leads[mine, b].sum()) == 1]  # to itself alone
            for end in ends:
                join, path = self.branches.path(example, end)
                new = [branch for branch in path if branch not in seen]
                seen.update(new)
                before = tokens[: join + 1][mask[: join + 1]].tolist()
                yield example, [*before, *self.branches.tokens[example, path].tolist()], new


@dataclass(frozen=True, eq=False)
class Scores:
    """What a tree's continuations are worth, for one set of examples or several, one after another.

    Attributes:
        log_probability: Joint log-probability of each (nats, float64; 0 where there is none).
        greedy: Whether every token of it is the model's first choice.
        after: The model's first choice after the first continuation, where the tree reads it.
        first: Logits at the prompt's end, where asked for.
    """

    log_probability: Float[Tensor, "row continuation"]
    greedy: Bool[Tensor, "row continuation"]
    after: Int[Tensor, " row"] | None
    first: Float[Tensor, "row d_vocab"] | None

    @classmethod
    def of(
        cls, tree: ContinuationTree, chunks: Iterable[Chunk], *, n_sets: int = 1, first: bool
    ) -> "Scores":
        """From logits at all real places."""
        n_examples, n_places = tree.real.shape
        n_paths = tree.at.shape[1]
        size = n_examples * n_places
        example, path, step = (tree.at >= 0).nonzero(as_tuple=True)
        sets = torch.arange(n_sets)[:, None]
        source = (sets * size + (example * n_places + tree.at[example, path, step])).flatten()
        token = tree.following[example, path, step].repeat(n_sets)
        joint = (sets * (n_examples * n_paths) + (example * n_paths + path)).flatten()
        stops = tree.ends >= 0
        ends = (sets * size + (torch.arange(n_examples) * n_places + tree.ends)).flatten()
        watched = torch.zeros(n_sets * size, dtype=torch.bool)
        watched[ends[stops.repeat(n_sets)]] = True
        chosen = torch.full((n_sets * size,), -1)
        place = torch.empty(n_sets * size, dtype=torch.long)
        values, order, beginnings = [], [], []
        for numbers, given in chunks:
            if first:
                beginnings.append(given[(numbers % n_places == 0).to(given.device)])
            logits = given.float()
            place.fill_(-1)
            place[numbers] = torch.arange(len(numbers))
            here = (place[source] >= 0).nonzero()[:, 0]
            rows = place[source[here]].to(logits.device)
            best = logits.amax(-1)
            total = (logits - best[:, None]).exp_().sum(-1).log_()
            target = logits[rows, token[here].to(logits.device)] - best[rows]
            values.append(target - total[rows])
            order.append(here)
            # A first choice is looked for only where it may be the token, or is asked for.
            wanted = watched[numbers]
            wanted[rows[target == 0].cpu()] = True
            wanted = wanted.nonzero()[:, 0]
            chosen[numbers[wanted]] = logits[wanted.to(logits.device)].argmax(-1).cpu()
        each = torch.cat(values).double().cpu()
        index = joint[torch.cat(order)]
        total = torch.zeros(n_sets * n_examples * n_paths, dtype=torch.float64)
        missed = torch.zeros(len(total), dtype=torch.long).index_add_(
            0, joint, (chosen[source] != token).long()
        )
        shape = (n_sets * n_examples, n_paths)
        return cls(
            total.index_add(0, index, each).view(shape),
            (missed == 0).view(shape),
            chosen[ends] if bool(stops.all()) else None,
            torch.cat(beginnings) if first else None,
        )


class _Filled:
    """`Branches` that are being filled in, row by row."""

    def __init__(self, n_rows: int, n_branches: int, pad: int) -> None:
        shape = (n_rows, n_branches)
        self.tokens = np.full(shape, pad, dtype=np.int64)
        self.places, self.joins = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        self.sees = np.repeat(np.eye(n_branches, dtype=bool)[None], n_rows, axis=0)
        self.real = np.zeros(shape, dtype=bool)

    def fill(self, row: int, last: int, chain: Path, nodes: Mapping[Path, int]) -> None:
        self.places[row] = self.joins[row] = last
        for path, branch in nodes.items():
            shared = next(k for k, token in enumerate(path) if token != chain[k])
            self.tokens[row, branch] = path[-1]
            self.places[row, branch] = last + len(path)
            self.joins[row, branch] = last + shared
            self.real[row, branch] = True
            for length in range(shared + 1, len(path)):
                self.sees[row, branch, nodes[path[:length]]] = True

    def made(self) -> Branches:
        parts = (self.tokens, self.places, self.joins, self.sees, self.real)
        return Branches(*map(torch.from_numpy, parts))


def read_of(continuations: Sequence[Path], *, stop: bool) -> list[Path]:
    """What must be read of each: all but its last token; of the first all with ``stop``."""
    return [
        path if stop and number == 0 else path[:-1] for number, path in enumerate(continuations)
    ]


def longest(paths: Sequence[Path]) -> Path:
    """The longest, the first of them.

    >>> longest([(1,), (2, 3), (4, 5)]), longest([])
    ((2, 3), ())
    """
    return max(paths, key=len, default=())


def _branches_of(read: Sequence[Path], chain: Path) -> dict[Path, int]:
    """All beginnings that are not in the row, each after those that lead to it."""
    found: dict[Path, int] = {}
    for path in read:
        for length in range(1, len(path) + 1):
            if path[:length] != chain[:length]:
                found.setdefault(path[:length], len(found))
    return found


def pad_left(
    rows: Sequence[Sequence[int]], pad: int, device: Any
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Token rows as one tensor, padded on the left, and the mask of its real tokens.

    >>> pad_left([[5], [6, 7]], 0, "cpu")[0].tolist()
    [[0, 5], [6, 7]]
    """
    width = max(len(row) for row in rows)
    tokens = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for place, row in enumerate(rows):
        tokens[place, width - len(row) :] = row
        mask[place, width - len(row) :] = True
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
