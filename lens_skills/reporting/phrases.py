"""Numbers and names in words, as a report writes them."""

import math
from collections.abc import Sequence
from typing import Any

from lens_skills.scoring.evidence import percent_text, short_number


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, to so many significant digits.

    >>> signed(-0.3536), signed(12.0), signed(0.0)
    ('−0.354', '+12', '0')
    """
    if not value:
        return "0"
    return f"{value:+.{digits}g}".replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """``" [−0.43, −0.29]"``, or nothing where there is none.

    >>> interval(-0.4266, 0.2)
    ' [−0.427, +0.2]'
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f" [{signed(low, digits)}, {signed(high, digits)}]"


def correlation(r: float, low: float | None = None, high: float | None = None) -> str:
    """``"r = +0.85 [+0.80, +0.89]"``.

    >>> correlation(0.8512, 0.7968, 0.8919)
    'r = +0.85 [+0.80, +0.89]'
    """
    ends = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
    return f"r = {r:+.2f}{ends}".replace("-", "−")


def change(effect: float, low: float | None, high: float | None, unit: str, percent: Any) -> str:
    """``"−0.354 nats [−0.427, −0.286] (−12 %)"``."""
    share = percent_text(percent)
    told = f"{signed(effect)}{f' {unit}' if unit else ''}{interval(low, high)}"
    return told + (f" ({share})".replace("-", "−") if share else "")


def chance(name: str, value: float | None) -> str:
    """``"q = 0.003"``, or nothing.

    >>> chance("q", 0.00321), chance("q", None)
    ('q = 0.003', '')
    """
    text = short_number(value)
    return f"{name} = {text}" if text else ""


def counted(n: int, what: str) -> str:
    """``"1 neuron"``, ``"1,234 neurons"``.

    >>> counted(1, "neuron"), counted(1234, "neuron")
    ('1 neuron', '1,234 neurons')
    """
    return f"{n:,} {what}{'s' * (n != 1)}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names with commas, as many as fit, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def size(n_examples: int, n_groups: int) -> str:
    """``"384 examples in 32 groups"``."""
    return f"{counted(n_examples, 'example')} in {counted(n_groups, 'group')}"
