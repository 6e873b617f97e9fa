"""Permutation draws that keep dependence, and the p-values many tests get from them.

Which examples may trade places (schemes), the draws themselves, sign flips by group; then rank p,
pooled p, the max-T threshold and Benjamini–Hochberg."""

import hashlib
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError

Scheme = Literal["within", "kinds", "between", "free", "signs"]

# Groups whose sizes differ by no more than this may trade: at 1.25 a rare label of the larger
# groups had a family-wise error of 0.09, sign flips of 0.06; at 2 it was 0.14 and 0.06.
_ALIKE = 1.1


def choose_scheme(
    values: Float[Tensor, " row"], groups: Sequence[str], kinds: Sequence[str] | None = None
) -> Scheme:
    """The exchange that a metric known beforehand allows.

    ``"free"`` where every example is its own group; ``"between"`` where the metric is constant in
    each group and groups are of one size (whole groups trade). Where all groups have the same
    mean: ``"kinds"`` if the metric is constant in each of several input types of a group (whole
    types trade inside their group: a neuron that knows a type and nothing of the metric is alike
    on all examples of it), else ``"within"`` (examples trade inside their group). Otherwise
    ``"signs"`` (each group's contribution is flipped). Groups of different sizes may not trade:
    what a large group adds varies more, and a metric that goes with size had a family-wise error
    of 0.45; nor may types of different sizes.

    >>> choose_scheme(torch.tensor([0.0, 1.0, 0.0, 1.0]), ["a", "a", "b", "b"])
    'within'
    >>> few = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> choose_scheme(few, ["a"] * 4, ["key", "key", "keys", "keys"])
    'kinds'
    """
    codes = group_codes(groups)
    n_groups = int(codes.max()) + 1
    if n_groups == len(groups):
        return "free"
    share = _between_share(values, codes)
    if share >= 1 - 1e-9:
        sizes = np.bincount(codes)
        return "between" if sizes.max() <= _ALIKE * sizes.min() else "signs"
    if share > 1e-9:
        return "signs"
    # Types that recur in other groups are other units there: what is alike is a type in a group.
    inside = _inside_groups(groups, kinds)
    n_units = int(inside.max()) + 1
    if n_units in (n_groups, len(groups)) or _between_share(values, inside) < 1 - 1e-9:
        return "within"
    sizes = np.bincount(inside)
    home = codes[np.unique(inside, return_index=True)[1]]
    for group in range(n_groups):
        here = sizes[home == group]
        if here.max() > _ALIKE * here.min():
            return "signs"
    return "kinds"


def _inside_groups(groups: Sequence[str], kinds: Sequence[str] | None) -> np.ndarray:
    """The input types of each group as integers: a type in two groups is two."""
    pairs = groups if kinds is None else [f"{g}\0{k}" for g, k in zip(groups, kinds, strict=True)]
    return group_codes(pairs)


def constant_in_groups(values: Float[Tensor, " row"], groups: Sequence[str]) -> bool:
    """Whether the values of a group are all the same, in every group.

    >>> constant_in_groups(torch.tensor([1.0, 1.0, 0.0]), ["a", "a", "b"])
    True
    """
    return _between_share(values, group_codes(groups)) >= 1 - 1e-9


def _between_share(values: Float[Tensor, " row"], codes: np.ndarray) -> float:
    """What of the values' sum of squares lies between groups, 0 to 1."""
    sizes, numbers = np.bincount(codes), values.double().numpy()
    means = np.bincount(codes, numbers) / sizes
    total = float(((numbers - numbers.mean()) ** 2).sum())
    between = float((sizes * (means - numbers.mean()) ** 2).sum())
    return between / total if total > 0 else 1.0


def check_scheme(scheme: str) -> None:
    """Refuses a name that is no exchange scheme (or ``"auto"``)."""
    if scheme not in (*get_args(Scheme), "auto"):
        raise LensSkillsError(
            f"no exchange scheme {scheme!r}. Choose from 'auto', "
            + ", ".join(repr(name) for name in get_args(Scheme))
            + "."
        )


def group_codes(groups: Sequence[str]) -> np.ndarray:
    """The groups as integers 0, 1, … in the sorted order of their names."""
    code = {name: place for place, name in enumerate(sorted({*groups}))}
    return np.fromiter(map(code.__getitem__, groups), dtype=np.int64, count=len(groups))


def permutation_draws(
    groups: Sequence[str],
    n_draws: int,
    scheme: Scheme,
    *,
    seed: int,
    kinds: Sequence[str] | None = None,
) -> Int[Tensor, "row draw"]:
    """For each draw, which example's value every example receives.

    ``kinds`` are the input types that trade, whole, inside their group (scheme ``"kinds"``).

    Raises:
        LensSkillsError: Where the scheme leaves nothing to exchange.

    >>> permutation_draws(["a", "a", "b", "b"], 1, "within", seed=0).sort(0).values[:, 0].tolist()
    [0, 1, 2, 3]
    """
    draws = np.empty((len(groups), n_draws), dtype=np.int32)
    for place, draw in enumerate(each_draw(groups, n_draws, scheme, seed=seed, kinds=kinds)):
        draws[:, place] = draw
    return torch.from_numpy(draws)


def each_draw(
    groups: Sequence[str],
    n_draws: int,
    scheme: Scheme,
    *,
    seed: int,
    kinds: Sequence[str] | None = None,
) -> Iterator[np.ndarray]:
    """The draws of `permutation_draws` one after the other."""
    codes = group_codes(groups)
    n_rows, n_groups = len(codes), int(codes.max()) + 1
    random = np.random.default_rng(seed)
    if scheme == "free":
        for _ in range(n_draws):
            yield random.permutation(n_rows)
    elif scheme == "within":
        if n_groups == n_rows:
            raise LensSkillsError(
                "exchange within groups was asked for, but every example is its own group. "
                "Use exchange='free', or declare groups in the task."
            )
        home = np.argsort(codes, kind="stable")
        for _ in range(n_draws):
            draw = np.empty(n_rows, dtype=np.int64)
            # Sorting by (group, random number) shuffles every group in one call.
            draw[home] = np.lexsort((random.random(n_rows), codes))
            yield draw
    elif scheme == "kinds":
        inside = _inside_groups(groups, kinds)
        first = np.unique(inside, return_index=True)[1]
        home = codes[first]
        order = np.argsort(home, kind="stable")
        for _ in range(n_draws):
            received = np.empty(len(first), dtype=np.int64)
            received[order] = np.lexsort((random.random(len(first)), home))
            yield first[received[inside]]
    elif scheme == "between":
        if n_groups < 2:
            raise LensSkillsError(
                "exchange between groups was asked for, but there is one group only."
            )
        representative = np.unique(codes, return_index=True)[1]
        for _ in range(n_draws):
            yield representative[random.permutation(n_groups)[codes]]
    else:
        raise AssertionError(f"{scheme} is not a permutation")


# So many indices are kept in memory (16 MB), more in a file: of a hundred thousand examples they
# would be the larger part of what a pass over activations on disk needs.
_IN_MEMORY = 1 << 22
_DRAWS_TOGETHER, _ROWS_TOGETHER = 16, 1 << 14


class StoredDraws:
    """The draws of `permutation_draws`, of which a batch's rows are asked for: ``draws[index]``.

    They are in memory where they are few, else in a temporary file that goes with the object.
    """

    def __init__(
        self,
        groups: Sequence[str],
        n_draws: int,
        scheme: Scheme,
        *,
        seed: int,
        kinds: Sequence[str] | None = None,
    ) -> None:
        self.shape = (len(groups), n_draws)
        asked: dict[str, Any] = {"seed": seed, "kinds": kinds}
        self._held: Tensor | None = None
        if len(groups) * n_draws <= _IN_MEMORY:
            self._held = permutation_draws(groups, n_draws, scheme, **asked)
            return
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this object)
        weakref.finalize(self, self._file.close)
        self._file.truncate(4 * len(groups) * n_draws)
        draws = each_draw(groups, n_draws, scheme, **asked)
        for first in range(0, n_draws, _DRAWS_TOGETHER):
            some = [draw.astype(np.int32) for draw in islice(draws, _DRAWS_TOGETHER)]
            for start in range(0, len(groups), _ROWS_TOGETHER):
                # Mapped a part at a time: pages that were written count as memory until then.
                part = self._rows("r+")[start : start + _ROWS_TOGETHER]
                for place, draw in enumerate(some):
                    part[:, first + place] = draw[start : start + _ROWS_TOGETHER]
                del part

    def _rows(self, mode: Literal["r", "r+"] = "r") -> np.ndarray:
        return np.memmap(self._file, dtype=np.int32, mode=mode, shape=self.shape)

    def __getitem__(self, index: Int[Tensor, " batch"]) -> Int[Tensor, "batch draw"]:
        """The draws of some rows."""
        if self._held is not None:
            return self._held[index]
        return torch.from_numpy(np.array(self._rows()[index.numpy()]))


def block_draws(groups: Sequence[str], n_draws: int, *, seed: int) -> Int[Tensor, "row draw"]:
    """For each draw, which row every row's value comes from when groups of one size trade places.

    The first example of a group goes to the place of another's first, and so on.

    >>> draws = block_draws(["a", "a", "b", "b", "c"], 20, seed=0)
    >>> sorted({tuple(draw) for draw in draws.T.tolist()})
    [(0, 1, 2, 3, 4), (2, 3, 0, 1, 4)]
    """
    codes = group_codes(groups)
    sizes = np.bincount(codes)
    rows = np.argsort(codes, kind="stable")
    starts = np.cumsum(sizes) - sizes
    random = np.random.default_rng(seed)
    draws = np.empty((len(codes), n_draws), dtype=np.int32)
    for size in np.unique(sizes):
        blocks = rows[starts[sizes == size][:, None] + np.arange(size)]
        for draw in range(n_draws):
            draws[blocks, draw] = blocks[random.permutation(len(blocks))]
    return torch.from_numpy(draws)


def flip_factors(
    groups: Sequence[str], given: Float[Tensor, "row given"] | None = None
) -> Float[Tensor, " row"]:
    """What each example's group's contribution is multiplied by when its sign is flipped.

    Taking the mean (and covariates) out ties the groups' contributions together, which flips undo:
    a large group's own contribution has shrunk by its leverage h_g, n_g / N without covariates, and
    draws without 1 / (1 - h_g) are too narrow exactly where a metric is large in large groups
    (family-wise 5 % was 28 % for a metric like log group size in 15 groups). With covariates h_g is
    the leverage of the group's mean; where it is 1 nothing of the group's mean is left to flip.

    Source: the CR3 residuals of clustered errors, Bell & McCaffrey 2002; Cameron & Miller 2015.

    >>> flip_factors(["a", "a", "b", "b"]).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    codes = torch.from_numpy(group_codes(groups))
    sizes = torch.bincount(codes).double()
    leverage = sizes / len(groups)
    if given is not None and given.shape[1]:
        centred = given.double() - given.double().mean(0)
        inverse = torch.linalg.pinv(centred.T @ centred)
        totals = torch.zeros(len(sizes), centred.shape[1], dtype=torch.float64)
        totals.index_add_(0, codes, centred)
        leverage = leverage + ((totals @ inverse) * totals).sum(1) / sizes
    # Where a group's mean is gone altogether, what is left of the group is not shrunk.
    whole = leverage >= 1 - 1e-9
    factor = torch.where(whole, 1.0, 1 / (1 - leverage.clamp(max=_MOST_LEVERAGE)))
    return factor[codes]


# A factor beyond 10 rests on a tenth of what the group had.
_MOST_LEVERAGE = 0.9


def signs(keys: Sequence[str], n_draws: int, *, seed: int, purpose: str) -> Int[Tensor, "row draw"]:
    """Random ±1 for each key, the same for the same key, seed and purpose on any machine.

    With groups as keys: the sign flips of a group-wise null. With input types as keys: those of a
    control task of very many types (Hewitt & Liang 2019, arXiv 1909.03368).

    >>> signs(["a", "b", "a"], 4, seed=0, purpose="null").shape
    torch.Size([3, 4])
    """
    place = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    coins = sign_bits(place, n_draws, seed=seed, purpose=purpose)
    rows = np.fromiter(map(place.__getitem__, keys), dtype=np.int64, count=len(keys))
    return unpacked_signs(coins[rows], n_draws)


def sign_bits(keys: Iterable[str], n_draws: int, *, seed: int, purpose: str) -> np.ndarray:
    """The signs of each key, eight to a byte: a row per key; see `unpacked_signs`."""
    size, start = (n_draws + 7) // 8, f"{purpose}/{seed}/"
    coins = b"".join(hashlib.shake_256((start + key).encode()).digest(size) for key in keys)
    return np.frombuffer(coins, dtype=np.uint8).reshape(-1, size)


def unpacked_signs(bits: np.ndarray, n_draws: int) -> Int[Tensor, "row draw"]:
    """Rows of `sign_bits` as ±1."""
    return torch.from_numpy(np.unpackbits(bits, axis=1, count=n_draws).view(np.int8) * 2 - 1)


# A draw that repeats the observed arrangement (likely where groups are few) gives the observed
# statistic but for its last bits; within this share of it, it counts as equal.
TIE = 1e-9


def family_threshold(null_max: Float[Tensor, " draw"], *, alpha: float = 0.05) -> float:
    """The value a statistic must *exceed* for a family-wise p of at most ``alpha``.

    ``null_max`` holds the largest statistic of the whole family in each draw (max-T).
    Source: Westfall & Young 1993; p = (1 + #{null >= t}) / (1 + n), Phipson & Smyth 2010.

    Raises:
        LensSkillsError: Where ``n`` draws cannot reach ``alpha`` at all.

    >>> round(family_threshold(torch.arange(100.0)), 3)
    95.0
    """
    n_draws = len(null_max)
    # k draws may reach the threshold while (1 + k) / (1 + n) <= alpha.
    allowed = int(np.floor(alpha * (1 + n_draws) + 1e-9)) - 1
    if allowed < 0:
        raise LensSkillsError(
            f"{n_draws} draws cannot give p <= {alpha:g}: the smallest p is 1/{1 + n_draws}. "
            f"Ask for at least {int(np.ceil(1 / alpha)) - 1} draws."
        )
    bar = float(null_max.sort(descending=True).values[allowed])
    return bar + TIE * abs(bar)


def rank_p(
    statistic: Float[Tensor, "*shape"], null: Float[Tensor, " draw"]
) -> Float[Tensor, "*shape"]:
    """p of each statistic among the draws: (1 + #{null >= t}) / (1 + n).

    Where the draws are the largest of a whole family (max-T), it is family-wise.

    >>> rank_p(torch.tensor([9.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    ordered = null.sort().values.double()
    reached = statistic.double() - TIE * statistic.double().abs()
    below = torch.searchsorted(ordered, reached.contiguous(), right=False)
    return (1 + len(ordered) - below).double() / (1 + len(ordered))


class PooledDraws:
    """Rank p of each unit among the draws of all units together, to a millionth.

    Draws are counted in bins 2⁻²⁰ wide, a few at a time and none kept, which is exact up to the
    ties in one bin (counted as larger) and many times faster than sorting millions of them.

    Assumes: units alike enough to share one null distribution.

    >>> draws = PooledDraws()
    >>> draws.add(torch.tensor([[0.1], [0.6], [0.7]]))
    >>> draws.p(torch.tensor([0.5])).item()
    0.75
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(_BINS + 1, dtype=torch.int64)
        # Numbers wait for one another: a count of few costs as much as clearing its bins.
        self._places = torch.empty(_TOGETHER, dtype=torch.int32)
        self._waiting = 0

    def add(self, draws: Float[Tensor, "*any"]) -> None:
        """Counts these draws, which lie in [0, 1]."""
        for part in (draws * _BINS).flatten().split(_TOGETHER):
            if self._waiting + len(part) > _TOGETHER:
                self._count()
            self._places[self._waiting : self._waiting + len(part)] = part
            self._waiting += len(part)

    def _count(self) -> None:
        found = self._places[: self._waiting]
        self._counts += torch.bincount(found, minlength=_BINS + 1)
        self._waiting = 0

    def p(self, strength: Float[Tensor, " unit"], *, n_left_out: int = 0) -> Float[Tensor, " unit"]:
        """p of each strength in [0, 1]; ``n_left_out`` draws that are 0 are not counted."""
        self._count()
        at_least = self._counts.flip(0).cumsum(0).flip(0)
        at_least[0] -= n_left_out
        place = (strength * _BINS).long().clamp(max=_BINS)
        return (1 + at_least[place]).double() / (1 + at_least[0])


_BINS = 1 << 20

_TOGETHER = 1 << 22  # draws counted at once


def false_discovery_q(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    """Benjamini–Hochberg adjusted p-values (SciPy's).

    Source: Benjamini & Hochberg 1995. Assumes independent or positively dependent tests.

    >>> [round(q, 3) for q in false_discovery_q(torch.tensor([0.01, 0.02, 0.9])).tolist()]
    [0.03, 0.03, 0.9]
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import false_discovery_control

    if p.numel() == 0:
        return p
    return torch.from_numpy(false_discovery_control(p.double().numpy()))
