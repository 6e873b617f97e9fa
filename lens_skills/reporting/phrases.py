"""Numbers and names in words, as a report writes them."""

import math
from collections.abc import Sequence
from typing import Any

from lens_skills.scoring.evidence import percent_text, short_number


def decimals(*values: float | None, digits: int = 3) -> int:
    """How many decimals show the largest of some numbers to so many significant digits.

    >>> decimals(0.971, 0.764, 1.2), decimals(0.0303), decimals(120.0)
    (2, 4, 0)
    """
    most = max((abs(x) for x in values if x is not None and math.isfinite(x)), default=0.0)
    if most == 0:
        return digits - 1
    return min(max(digits - 1 - math.floor(math.log10(most)), 0), 8)


def signed(value: float, places: int | None = None) -> str:
    """A number with its sign, to so many decimals, or to three significant digits.

    >>> signed(-0.3536), signed(1.2, 3), signed(0.0, 2)
    ('−0.354', '+1.200', '0.00')
    """
    text = f"{value:+.{decimals(value) if places is None else places}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def interval(low: float | None, high: float | None, places: int | None = None) -> str:
    """``" [−0.43, −0.29]"``, or nothing where there is none.

    >>> interval(-0.4266, 0.2)
    ' [−0.427, +0.200]'
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    shown = decimals(low, high) if places is None else places
    return f" [{signed(low, shown)}, {signed(high, shown)}]"


def correlation(r: float, low: float | None = None, high: float | None = None) -> str:
    """``"r = +0.85 [+0.80, +0.89]"``.

    >>> correlation(0.8512, 0.7968, 0.8919)
    'r = +0.85 [+0.80, +0.89]'
    """
    ends = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
    return f"r = {r:+.2f}{ends}".replace("-", "−")


def change(
    effect: float, low: float | None, high: float | None, unit: str, percent: Any = None
) -> str:
    """``"−0.354 nats [−0.427, −0.286] (−12 %)"``, all numbers to the same decimals.

    >>> change(0.971, 0.764, 1.2, "nats", 32.01)
    '+0.97 nats [+0.76, +1.20] (+32 %)'
    """
    places = decimals(effect, low, high)
    share = percent_text(percent)
    told = f"{signed(effect, places)}{f' {unit}' if unit else ''}{interval(low, high, places)}"
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
