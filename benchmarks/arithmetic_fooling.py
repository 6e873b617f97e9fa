"""Problems made to fool a shortcut: its wrong answer is predicted on some, seen on others.

A prediction is one of `WRONG_ANSWERS`, chosen on the splits on which the neurons were found. The
new problems come in pairs: in one the shortcut's feature holds, in the other it does not; both are
of one operation, with operands and results as long, and the wrong answer differs from the right one
in both.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import lens_skills as ls
from lens_skills.explanation.conditional_effects import Condition
from lens_skills.stats.intervals import share_difference, share_interval
from lens_skills.tasks.arithmetic import PROMPT, WORDS, ArithmeticProblem, pair, pose

FEWEST_SEEN = 3
"""So often an answer must have come where the feature holds, before it is predicted."""
FEWEST_PAIRS = 8
NEW_TOKENS = 6  # four digits, a sign and what ends them


def _digit_by_digit(problem: ArithmeticProblem) -> int | None:
    """Each column by itself, modulo 10: what is carried or borrowed is forgotten."""
    if problem.op not in "+-":
        return None
    sign = 1 if problem.op == "+" else -1
    a, b, found, place = problem.a, problem.b, 0, 1
    while a or b:
        found += (a % 10 + sign * (b % 10)) % 10 * place
        a, b, place = a // 10, b // 10, place * 10
    return found


def _wrapped(problem: ArithmeticProblem) -> int | None:
    """A negative result with the ten or hundred that was never there to borrow."""
    length = max(len(str(problem.a)), len(str(problem.b)))
    return problem.result + 10**length if problem.result < 0 else None


def _as(op: str) -> Callable[[ArithmeticProblem], int | None]:
    return lambda problem: ArithmeticProblem(problem.a, op, problem.b).result


WRONG_ANSWERS: dict[str, Callable[[ArithmeticProblem], int | None]] = {
    "copy of a": lambda problem: problem.a,
    "copy of b": lambda problem: problem.b,
    "sign lost": lambda problem: abs(problem.result),
    "digit by digit, no carry": _digit_by_digit,
    "negative, a power of ten added": _wrapped,
    "ten more": lambda problem: problem.result + 10,
    "ten less": lambda problem: problem.result - 10,
    "one more": lambda problem: problem.result + 1,
    "one less": lambda problem: problem.result - 1,
    "their sum": _as("+"),
    "their difference": _as("-"),
    "their product": _as("*"),
}


def wrong_answer(name: str, example: Any) -> str | None:
    """What a wrong answer is for a problem; None where it is none, or the right one."""
    a, op, b = (example.column(column) for column in ("operand_a", "op", "operand_b"))
    found = WRONG_ANSWERS[name](ArithmeticProblem(int(a), str(op), int(b)))
    return None if found is None or str(found) == example.answer else str(found)


@dataclass(frozen=True)
class Prediction:
    """The wrong answer that comes more often where a feature holds (or is missing) than elsewhere.

    Attributes:
        condition: When the feature holds, or ``"not: …"``.
        answer: One of `WRONG_ANSWERS`; "" where none comes more often, `FEWEST_SEEN` times.
        seen, n_with: How often it came on that side, of how many.
        excess: Of its rate over that of examples of the same operation and length without.
        more_errors: The same of all errors, from -1 to 1; None where no stratum holds both.
    """

    condition: str
    answer: str
    seen: int
    n_with: int
    excess: float
    more_errors: float | None


def missing(condition: Condition) -> Condition:
    """That it does not hold."""
    return Condition(f"not: {condition.words}", lambda example: not condition.holds(example))


def predict(condition: Condition, examples: Sequence[Any], said: Sequence[str]) -> Prediction:
    """What the model is predicted to say, from its answers to some examples, and on which side.

    A shortcut may fail where its feature holds, or where it is missing: the side where the answer
    comes most beyond the other.
    """
    sides = [_predict(side, examples, said) for side in (condition, missing(condition))]
    return max(sides, key=lambda side: side.excess)


def _predict(condition: Condition, examples: Sequence[Any], said: Sequence[str]) -> Prediction:
    holds = condition.of(examples).numpy()
    strata = np.array([f"{e.column('op')}{e.column('digits')}" for e in examples])
    wrong = np.array([text != e.answer for text, e in zip(said, examples, strict=True)])
    more = _excess(wrong, holds, strata)
    best = Prediction(condition.words, "", 0, int(holds.sum()), 0.0, more)
    for name in WRONG_ANSWERS:
        meant = [wrong_answer(name, example) for example in examples]
        able = np.array([answer is not None for answer in meant])
        hit = np.array([text == answer for text, answer in zip(said, meant, strict=True)])
        found = _excess(hit[able], holds[able], strata[able])
        seen, n_with = int((hit & holds).sum()), int((able & holds).sum())
        if found is not None and seen >= FEWEST_SEEN and found > best.excess:
            best = Prediction(condition.words, name, seen, n_with, found, more)
    return best


def _excess(hit: np.ndarray, holds: np.ndarray, strata: np.ndarray) -> float | None:
    """Rate where it holds less rate where not, over strata with both, weighed by where it holds."""
    total, weight = 0.0, 0
    for stratum in set(strata.tolist()):
        there, elsewhere = (hit[(strata == stratum) & part] for part in (holds, ~holds))
        if len(there) and len(elsewhere):
            total += len(there) * (there.mean() - elsewhere.mean())
            weight += len(there)
    return float(total / weight) if weight else None


def problems(
    ops: str, digits: Sequence[int], without: Collection[str], *, most: int, seed: int
) -> list[Any]:
    """New problems, at most so many of each operation and length, none of a pair seen before."""
    found = []
    for op in ops:
        for length in digits:
            low, high = (0, 9) if length == 1 else (10 ** (length - 1), 10**length - 1)
            numbers = random.Random(f"{seed} {op} {length}")
            cell = [
                problem
                for _ in range(20 * most)
                for problem in [
                    ArithmeticProblem(numbers.randint(low, high), op, numbers.randint(low, high))
                ]
                if pair(problem) not in without
            ]
            found += list(dict.fromkeys(cell))[:most]
    return [
        pose(
            problem,
            id=f"{problem.a}{problem.op}{problem.b}",
            prompt=PROMPT.format(a=problem.a, word=WORDS[problem.op], b=problem.b),
            targets=("op", "carry", "even"),
        )
        for problem in found
    ]


def matched_pairs(
    pool: Sequence[Any], condition: Condition, answer: str, n: int, *, seed: int
) -> list[tuple[Any, Any]]:
    """Problems with the feature, each beside one without that is alike; no operands come twice.

    Alike: the operation, the length of the operands, sign and length of the result, and, of those,
    the nearest size of the result. The sign is let go where the feature decides it: where, with it,
    less than half of the problems with the feature have one beside them (of "a is not larger than
    b", those with a = b alone).
    """
    able = [e for e in pool if wrong_answer(answer, e) is not None]
    elsewhere = {_kind(e, sign=True) for e in able if not condition.holds(e)}
    there = [_kind(e, sign=True) in elsewhere for e in able if condition.holds(e)]
    sign = 2 * sum(there) >= len(there)
    return _pairs(pool, condition, answer, n, seed, sign=sign)


def _pairs(
    pool: Sequence[Any], condition: Condition, answer: str, n: int, seed: int, *, sign: bool
) -> list[tuple[Any, Any]]:
    order = [e for e in pool if wrong_answer(answer, e) is not None]
    random.Random(f"{seed} {condition.words}").shuffle(order)
    holds = condition.of(order).tolist()
    rest: dict[Any, list[Any]] = {}
    for example, there in zip(order, holds, strict=True):
        if not there:
            rest.setdefault(_kind(example, sign), []).append(example)
    used: set[str] = set()
    found: list[tuple[Any, Any]] = []
    for example, there in zip(order, holds, strict=True):
        free = [one for one in rest.get(_kind(example, sign), []) if one.group not in used]
        free = [one for one in free if one.group != example.group]
        if len(found) == n or not there or example.group in used or not free:
            continue
        size = abs(example.column("result"))
        near = min(free, key=lambda one, at=size: abs(abs(one.column("result")) - at))
        used |= {example.group, near.group}
        found.append((example, near))
    return found


def _kind(example: Any, sign: bool) -> tuple[Any, ...]:
    names = ("op", "digits", "result_digits", *(("negative",) if sign else ()))
    return tuple(example.column(name) for name in names)


def answers(
    model: Any, examples: Sequence[Any], knock_out: Any = (), over: Any = None
) -> list[str]:
    """What the model writes first, greedily; with some neurons at their mean over examples."""

    def write() -> list[str]:
        texts = ls.generate(model, examples, temperature=0, max_new_tokens=NEW_TOKENS).frame()
        return [str(text).strip().split("\n")[0].strip().rstrip(".") for text in texts["text"]]

    if not len(knock_out):
        return write()
    with ls.edited(model, list(knock_out), ls.ablate("mean", over=over)):
        return write()


@dataclass(frozen=True)
class Rate:
    """A share, or a difference of shares, with its 95 % interval over pairs of operands."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def share(self) -> str:
        """Of a share, which has no sign."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Fooled:
    """What was seen on new problems, `with` the feature and without.

    Attributes:
        n_pairs: Of problems.
        errors_with, errors_without, more_errors: Error rates, and their difference pair by pair.
        answer_with, answer_without, more_answers: The same of the predicted wrong answer.
    """

    n_pairs: int
    errors_with: Rate
    errors_without: Rate
    more_errors: Rate
    answer_with: Rate
    answer_without: Rate
    more_answers: Rate

    @property
    def seen(self) -> bool:
        """Whether the predicted answer comes more often with the feature, beyond chance."""
        return self.more_answers.low > 0


def fooled(pairs: Sequence[tuple[Any, Any]], said: Sequence[str], answer: str) -> Fooled:
    """Error rates and rates of the predicted answer; ``said`` of the first of all pairs, then of
    the second."""
    n = len(pairs)
    sides = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
    texts = [said[:n], said[n:]]

    def of(holds: Callable[[str, Any], bool]) -> list[torch.Tensor]:
        return [
            torch.tensor([float(holds(text, e)) for text, e in zip(*side, strict=True)]).double()
            for side in zip(texts, sides, strict=True)
        ]

    wrong = of(lambda text, e: text != e.answer)
    meant = of(lambda text, e: text == wrong_answer(answer, e))
    return Fooled(
        n_pairs=n,
        errors_with=_rate(wrong[0]),
        errors_without=_rate(wrong[1]),
        more_errors=change(wrong[1], wrong[0]),
        answer_with=_rate(meant[0]),
        answer_without=_rate(meant[1]),
        more_answers=change(meant[1], meant[0]),
    )


def _rate(hits: torch.Tensor) -> Rate:
    low, high = share_interval(hits[None], _each(hits))
    return Rate(float(hits.mean()), float(low[0]), float(high[0]))


def change(before: torch.Tensor, after: torch.Tensor) -> Rate:
    """Difference of two shares of the same, or of paired, problems."""
    low, high = share_difference((after - before)[None], _each(before))
    return Rate(float((after - before).mean()), float(low[0]), float(high[0]))


def _each(hits: torch.Tensor) -> list[str]:
    return [str(place) for place in range(len(hits))]


@dataclass(frozen=True)
class KnockedOut:
    """What the shortcut's neurons had to do with it: answers without them less answers with them.

    Attributes:
        predicted: Of the predicted wrong answer, where the feature holds.
        right_with, right_without: Of right answers, with the feature and without.
    """

    predicted: Rate
    right_with: Rate
    right_without: Rate


def knocked_out(
    pairs: Sequence[tuple[Any, Any]], said: Sequence[str], without: Sequence[str], answer: str
) -> KnockedOut:
    """The changes from ``said`` to what is said without the neurons."""
    n, both = len(pairs), [*(p[0] for p in pairs), *(p[1] for p in pairs)]

    def of(texts: Sequence[str], wanted: Callable[[Any], str | None]) -> torch.Tensor:
        hits = [float(text == wanted(e)) for text, e in zip(texts, both, strict=True)]
        return torch.tensor(hits).double()

    right = [of(texts, lambda e: e.answer) for texts in (said, without)]
    meant = [of(texts, lambda e: wrong_answer(answer, e)) for texts in (said, without)]
    return KnockedOut(
        change(meant[0][:n], meant[1][:n]),
        change(right[0][:n], right[1][:n]),
        change(right[0][n:], right[1][n:]),
    )
