"""Methods over several tasks: mean differences of their shares of hits, and a sign test."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lens_skills.errors import LensSkillsError
from lens_skills.ranking.method_comparison import MethodComparison


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided exact p of as many differences above 0 as below it; those of 0 say nothing.

    Source: Arbuthnot 1710; Dixon & Mood 1946.

    >>> sign_test([0.1, 0.2, 0.1, 0.3, 0.2, 0.1]), sign_test([0.0])
    (0.03125, 1.0)
    """
    from scipy.stats import binomtest

    above = sum(value > 0 for value in differences)
    n = above + sum(value < 0 for value in differences)
    return float(binomtest(above, n).pvalue) if n else 1.0


def differences_over_tasks(
    comparisons: Mapping[str, MethodComparison], *, first: str | None = None
) -> pd.DataFrame:
    """Every two methods over several tasks: the mean difference of their shares, and a sign test.

    One row per pair: method other n_tasks wins losses ties p difference low high. ``wins`` are
    the tasks where ``method`` has the larger share of hits; ``p`` is the exact two-sided sign test
    (of this pair by itself); the 95 % interval of the mean difference is Student's over the tasks,
    each task counted once; NaN with one task.

    Args:
        comparisons: Of one kind, by task.
        first: Only the pairs of this method with each other one.

    Raises:
        LensSkillsError: No comparison, or no task with the method ``first``.

    Does not show: more than the tasks are a sample of. Under 6 tasks no p is below 0.05.
    """
    from scipy.stats import t as student

    if not comparisons:
        raise LensSkillsError("no comparison to count over: the mapping is empty.")
    names = list(dict.fromkeys(name for each in comparisons.values() for name in each.all_methods))
    if first is not None and first not in names:
        raise LensSkillsError(f"no method {first!r} here. There are: {', '.join(names)}.")
    rows = []
    for place, method in enumerate(names):
        others = names[place + 1 :] if first is None else [n for n in names if n != first]
        if first is not None and method != first:
            continue
        for other in others:
            found = np.array([
                each[method].share - each[other].share
                for each in comparisons.values()
                if {method, other} <= set(each.all_methods)
            ])  # fmt: skip
            n = len(found)
            if n == 0:
                continue
            half = math.nan
            if n > 1:
                half = float(student.ppf(0.975, n - 1)) * float(found.std(ddof=1)) / math.sqrt(n)
            mean = float(found.mean())
            rows.append(
                {
                    "method": method,
                    "other": other,
                    "n_tasks": n,
                    "wins": int((found > 0).sum()),
                    "losses": int((found < 0).sum()),
                    "ties": int((found == 0).sum()),
                    "p": sign_test(found.tolist()),
                    "difference": mean,
                    "low": mean - half,
                    "high": mean + half,
                }
            )
    return pd.DataFrame(rows)
