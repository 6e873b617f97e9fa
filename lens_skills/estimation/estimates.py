"""`Estimate`: what a call will take, and its card."""

from dataclasses import dataclass

from lens_skills.cards import card_lines
from lens_skills.progress import in_words

_LEAST_TOLD = 1.15  # a cheaper way is told where it is as much cheaper


@dataclass(frozen=True)
class Estimate:
    """What a call will take, told from small runs of it.

    Attributes:
        verb: Which call.
        seconds: How long, on this machine as busy as it was while measured.
        low, high: The interval it is believed to lie in, in seconds.
        memory: Bytes at the peak beyond the model and what else was in memory before.
        model_bytes: Of the model's parameters; 0 where no model is read.
        disk: Bytes of the result where it is saved (of `capture`: of the table); None for none.
        parts: What the time is made of, in words, with the seconds of each.
        measured: On what it was measured, in words.
        measuring: Seconds the measuring took.
        waited: Seconds of the clock that a processor second took while measured: above 1 the
            machine is busy (or waits), below 1 several cores work.
        cheaper: What would be cheaper, in words, with the seconds it would take then.
        notes: What to know before trusting it.
    """

    verb: str
    seconds: float
    low: float
    high: float
    memory: int
    model_bytes: int
    disk: int | None
    parts: tuple[tuple[str, float], ...]
    measured: str
    measuring: float
    waited: float = 1.0
    cheaper: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """The card."""
        beyond = f" beyond the model's {bytes_in_words(self.model_bytes)}"
        disk = "nothing to save" if self.disk is None else f"{bytes_in_words(self.disk)} when saved"
        rows = [
            ("time", f"about {in_words(self.seconds)} ({self._interval})"),
            ("memory", f"{bytes_in_words(self.memory)} at the peak"
             + (beyond if self.model_bytes else "")),
            ("disk", disk),
            ("made of", "; ".join(self._shares())),
            ("measured", f"{self.measured}, in {in_words(self.measuring)}"),
        ]  # fmt: skip
        told = [
            f"{what}: {in_words(seconds)}"
            for what, seconds in self.cheaper
            if seconds * _LEAST_TOLD < self.seconds
        ]
        rows += [("cheaper", "; ".join(told))] if told else []
        lines = [f"{self.verb}, told beforehand (nothing is kept of it)"]
        for name, text in rows:
            lines += card_lines(f"{name:<9} {text}", indent=2, hang=10)
        for note in self.notes:
            lines += card_lines(f"note: {note}", indent=2)
        return "\n".join(lines)

    @property
    def _interval(self) -> str:
        return f"{in_words(self.low)} to {in_words(self.high)}"

    def _shares(self) -> list[str]:
        whole = sum(seconds for _, seconds in self.parts) or 1.0
        ordered = sorted(self.parts, key=lambda part: -part[1])
        return [f"{seconds / whole:.0%} {what}" for what, seconds in ordered if seconds > 0]


def bytes_in_words(n: float) -> str:
    """A size as it is said.

    >>> [bytes_in_words(n) for n in (900, 4_200, 31_000_000, 2_600_000_000)]
    ['1 kB', '4 kB', '31 MB', '2.6 GB']
    """
    if n < 1e6:
        return f"{max(1, round(n / 1e3))} kB"
    if n < 1e9:
        return f"{n / 1e6:.0f} MB"
    return f"{n / 1e9:.1f} GB"
