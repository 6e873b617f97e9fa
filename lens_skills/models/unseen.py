"""Which pairs of operands `arithmetic-small` never saw in training."""

import hashlib

SHARE = 10
"""One pair in so many is held out."""


def held_out(a: int, b: int) -> bool:
    """Whether the training of ``load_model("arithmetic-small")`` left out this pair of operands.

    The pair is held out as a whole: in both orders, and for all operations. About one pair in ten
    is, by a hash, so that no pattern of digits tells which. On these pairs a right answer cannot
    be remembered: ``task.where(lambda e: held_out(e.column("operand_a"), e.column("operand_b")))``.

    >>> [b for b in range(10) if held_out(7, b)], held_out(9, 7)
    ([9], True)
    """
    pair = f"{min(a, b)} {max(a, b)}"
    return int.from_bytes(hashlib.sha256(pair.encode()).digest()[:8], "big") % SHARE == 0
