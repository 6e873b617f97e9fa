"""`Account`: what a target does when all that feeds it is corrupted, and what edges explain."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    """What a target does when everything that feeds it is corrupted, and what edges explain of it.

    Attributes:
        target: ``"L17N635"`` (its activation) or a metric's name.
        part: ``"upstream"``: the edges end at the target; ``"downstream"``: they begin at the
            start of the circuit and the target is the metric.
        unit: Of all numbers here.
        clean: Mean target on the clean prompts.
        total: Mean change when all of it is corrupted at once: the target's whole input
            (upstream), or the start's activation (downstream).
        low, high: The interval of the total, 95 %.
        explained: Sum of the confirmed edges at the target (upstream) or out of the start
            (downstream), each patched alone.
        tested: The same sum over all tested edges.
    """

    target: str
    part: str
    unit: str
    clean: float
    total: float
    low: float
    high: float
    explained: float
    tested: float

    @property
    def corrupted(self) -> float:
        """Mean target when all of it is corrupted."""
        return self.clean + self.total

    @property
    def residual(self) -> float:
        """Total minus explained: edges that are not confirmed, and what only acts together."""
        return self.total - self.explained

    @property
    def unexplained(self) -> float:
        """The residual as a share of the total; negative where the edges overshoot it."""
        return self.residual / self.total if self.total else float("nan")
