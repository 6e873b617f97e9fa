"""`Thresholds`: what |r| must exceed at each gate, and the gates' names in their order."""

from dataclasses import dataclass

GATES = {
    "associated": "permutation",
    "beat the control task": "control",
    "beat the rotated basis": "rotated",
}
"""The null behind each gate, in the order the gates are passed."""


@dataclass(frozen=True)
class Thresholds:
    """What |r| must exceed to pass each of the three nulls; None where one was not drawn.

    Attributes:
        permutation: 5 % family-wise level of the permutation (or sign-flip) null.
        control: 95th percentile of the largest |r| with random labels per input type.
        rotated: Largest |r| of any direction of a randomly rotated basis.
    """

    permutation: float | None
    control: float | None
    rotated: float | None

    def bar(self, gate: str) -> float | None:
        """What |r| must exceed at a gate.

        >>> Thresholds(0.3, 0.5, None).bar("beat the control task")
        0.5
        """
        return getattr(self, GATES[gate])
