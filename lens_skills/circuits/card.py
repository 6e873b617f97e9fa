"""`card_lines`: a circuit as a few lines of text."""

from typing import Any

_SHOWN = 20


def card_lines(circuit: Any) -> list[str]:
    """The lines that printing a `Circuit` shows: accounts, then the strongest confirmed edges."""
    edges, confirmed = circuit.edges, circuit.confirmed
    lines = [
        f"circuit of {circuit.target}: {len(confirmed)} of {len(edges)} proposed edges confirmed "
        f"({circuit.proposals}; {circuit.n_examples} pairs in {circuit.n_groups} groups)"
    ]
    for account in circuit.accounts:
        lines.append(
            f"{account.part:<10} {account.target} {account.clean:+.3f} → {account.corrupted:+.3f} "
            f"{account.unit}: total {account.total:+.3f} [{account.low:+.3f}, {account.high:+.3f}],"
            f" confirmed edges {account.explained:+.3f}, unexplained {account.unexplained:.0%}"
        )
    if confirmed:
        wide = max(len(str(edge)) for edge in confirmed[:_SHOWN])
        lines.append(
            f"{'edge':<{wide}}  {'on':<10} {'effect':>8} {'95 % interval':>18} {'share':>6}"
        )
    for edge in confirmed[:_SHOWN]:
        interval = f"[{edge.low:+.3f}, {edge.high:+.3f}]"
        lines.append(
            f"{edge!s:<{wide}}  {edge.target:<10} {edge.effect:>+8.3f} {interval:>18} "
            f"{'' if edge.share is None else format(edge.share, '.0%'):>6}"
        )
    if len(confirmed) > _SHOWN:
        lines.append(f"and {len(confirmed) - _SHOWN} more: .frame()")
    return [*lines, *(f"note: {note}" for note in circuit.notes)]
