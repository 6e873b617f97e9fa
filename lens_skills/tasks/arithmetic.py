"""`arithmetic`: sums, differences, products and quotients in BIG-bench's words.

What is known of a problem before a model reads it, and the wrong answer beside it, serve
`bigbench` too.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from lens_skills.data import Example, Value
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.task import Task, Texts, check_number

WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
QUESTION = re.compile(r"What is (\d+) (plus|minus|times|divided by) (\d+)\?")
TARGETS = ("op", "carry", "even")

# The prompt ends in a space, as BIG-bench's does, and the answer begins without one. With "A:" and
# " 7" a model would read the same characters in other tokens: many tokenizers make " 7" one token,
# and others make it a bare space, which every answer shares, and then "7". With the space in the
# prompt the first token of the answer is its first digit or its sign.
PROMPT = "\nQ: What is {a} {word} {b}?\nA: "
WORDINGS = {
    "calculate": "\nQ: Calculate {a} {word} {b}.\nA: ",
    "how much": "\nQ: How much is {a} {word} {b}?\nA: ",
    "result": "\nQ: What is the result of {a} {word} {b}?\nA: ",
    "symbols": "\nQ: {a} {op} {b} = ?\nA: ",
}

# Examples per file of the original from two digits on; its one-digit files are exhaustive.
ORIGINAL_SIZE = 1000

ORIGINAL_QUOTIENTS = {2: 200, 3: 500}
MOST_DIGITS = 9


class ArithmeticProblem(NamedTuple):
    """Two operands and an operation with a whole-number result.

    >>> ArithmeticProblem(3, "+", 4).result
    7
    """

    a: int
    op: str
    b: int

    @property
    def result(self) -> int:
        """The right answer; quotients are exact by construction."""
        a, op, b = self
        return a + b if op == "+" else a - b if op == "-" else a * b if op == "*" else a // b


def arithmetic(
    ops: str | Sequence[str] = "+-*/",
    digits: int | Sequence[int] = (1,),
    n: int | None = None,
    seed: int = 0,
    *,
    options: bool = False,
    group_by_pair: bool = True,
) -> Task:
    r"""A Task of BIG-bench arithmetic: "\nQ: What is 3 plus 4?\nA: " -> "7".

    One-digit problems are all there are (100 sums, differences and products each, 23 exact
    quotients); longer ones are drawn without repetition: both operands with that many digits, of
    a quotient the dividend, with a divisor of at most as many. Differences may be negative.

    Labels: ``op``, ``carry`` (1 where a column carries or borrows), ``even`` (the result), as far
    as they vary over the task. Those that do not, and the rest of `columns` (operands,
    result, digits, ...), are covariates.
    The foil is a slip in the leading digit (7 -> 6 or 8, 52 -> 42 or 62, -3 -> -2 or -4): as long
    as the answer, and different from it in the first digit, which may be all that a model's first
    answer token holds. The group is the unordered pair of operands, over all operations (3+4, 4+3
    and 3*4 stay together); the kind, for the control task, is the first operand.
    `Task.paraphrases`: three other questions, and + - * / in place of the words.

    Source: BIG-bench, task arithmetic (Srivastava et al. 2022, arXiv 2206.04615).

    Args:
        ops: Any of + - * /.
        digits: Digits of the operands, 1 to 9.
        n: Number of examples, spread evenly over operations and digits as far as there are
            enough; None takes the sizes of the original (all one-digit problems, then 1,000 per
            operation, quotients 200, 500, 1,000).
        seed: Which problems are drawn, and the order of the options.
        options: Give the answer, the foil and the other operations' results as options.
        group_by_pair: False makes each example its own group.

    Raises:
        LensSkillsError: unknown operation, digits out of range, or too few problems for n.

    >>> task = arithmetic("+")
    >>> len(task), task[34].prompt, task[34].answer
    (100, '\nQ: What is 3 plus 4?\nA: ', '7')
    >>> task.column("carry").sum()
    np.int64(45)
    """
    digits = (digits,) if isinstance(digits, int) else tuple(digits)
    if not ops or not set(ops) <= set(WORDS):
        raise LensSkillsError(
            f"arithmetic(ops={ops!r}): choose one or more of {' '.join(WORDS)}, e.g. '+-'."
        )
    if not digits or not all(1 <= count <= MOST_DIGITS for count in digits):
        raise LensSkillsError(f"arithmetic(digits={digits}): operands have 1 to {MOST_DIGITS}.")
    cells = [(op, count) for count in dict.fromkeys(digits) for op in dict.fromkeys(ops)]
    sizes = [_original_size(op, count) for op, count in cells]
    if n is not None:
        sizes = _spread(n, [_available(op, count) for op, count in cells])
    problems = [
        problem
        for (op, count), size in zip(cells, sizes, strict=True)
        # A generator per cell: asking for one more operation changes no other problem.
        for problem in _draw(op, count, size, random.Random(f"{seed} {op} {count}"))
    ]
    targets = varying(problems)
    examples = []
    for problem in problems:
        a, op, b = problem
        choices = _options(problem, seed) if options else ()
        examples.append(
            pose(
                problem,
                id=f"{a}{op}{b}",
                prompt=PROMPT.format(a=a, word=WORDS[op], b=b),
                targets=targets,
                options=choices,
                group=pair(problem) if group_by_pair else "",
            )
        )
    wordings: dict[str, dict[str, Texts]] = {
        name: {
            f"{a}{op}{b}": (template.format(a=a, word=WORDS[op], op=op, b=b), None)
            for a, op, b in problems
        }
        for name, template in WORDINGS.items()
    }
    return Task("arithmetic", examples, wordings=wordings)


def _original_size(op: str, digits: int) -> int:
    if digits == 1:
        return _available(op, 1)
    return ORIGINAL_QUOTIENTS.get(digits, ORIGINAL_SIZE) if op == "/" else ORIGINAL_SIZE


def _available(op: str, digits: int) -> int:
    """How many problems there are; of quotients, those with a divisor below 1,000."""
    if digits == 1:
        return 23 if op == "/" else 100
    low, high = 10 ** (digits - 1), 10**digits - 1
    if op != "/":
        return (high - low + 1) ** 2
    return sum(high // b - (low - 1) // b for b in range(1, min(high, 999) + 1))


def _spread(n: int, available: Sequence[int]) -> list[int]:
    """So many divided evenly over the cells, the share of small ones passed on to the others."""
    which = "problems for these operations and digits"
    more = "Ask for fewer, or add an operation or a digit"
    check_number("arithmetic", n, sum(available), f"{which}. {more}")
    sizes = [0] * len(available)
    for turn, cell in enumerate(sorted(range(len(available)), key=lambda i: (available[i], i))):
        left = len(available) - turn
        sizes[cell] = min(available[cell], (n - sum(sizes)) // left)
    return sizes


def _draw(op: str, digits: int, size: int, generator: random.Random) -> list[ArithmeticProblem]:
    """``size`` different problems: all of them in order, or a draw in random order."""
    if digits == 1:
        pairs = itertools.product(range(10), repeat=2)
        problems = [
            ArithmeticProblem(a, op, b) for a, b in pairs if op != "/" or (a and b and a % b == 0)
        ]
        return problems if size == len(problems) else generator.sample(problems, size)
    low, high = 10 ** (digits - 1), 10**digits - 1
    drawn: dict[ArithmeticProblem, None] = {}
    while len(drawn) < size:
        a, b = generator.randint(low, high), generator.randint(low, high)
        if op == "/":
            # As in the originals: divisors of every length alike, the longest half as often (most
            # of those only divide themselves).
            length = generator.randrange(2 * digits - 1) // 2 + 1
            b = generator.randint(10 ** (length - 1), 10**length - 1)
            a = b * generator.randint(-(-low // b), high // b)
        drawn[ArithmeticProblem(a, op, b)] = None
    return list(drawn)


def _options(problem: ArithmeticProblem, seed: int) -> tuple[str, ...]:
    """The answer, the foil and what the other operations give, in a seeded order."""
    a, _, b = problem
    others = [str(ArithmeticProblem(a, op, b).result) for op in "+-*"]
    choices = list(dict.fromkeys([str(problem.result), near_miss(problem), *others]))
    random.Random(f"{seed} {tuple(problem)}").shuffle(choices)
    return tuple(choices)


def parse(question: str, answer: str | None) -> ArithmeticProblem | None:
    """The problem a BIG-bench question states, or None if it is not one with this answer.

    >>> parse("What is 8 divided by 2?", "4")
    ArithmeticProblem(a=8, op='/', b=2)
    """
    match = QUESTION.fullmatch(question)
    # Numbers of more digits are no columns: a float64 does not hold them.
    if match is None or max(len(match[1]), len(match[3])) > 9:
        return None
    op = next(op for op, word in WORDS.items() if word == match[2])
    problem = ArithmeticProblem(int(match[1]), op, int(match[3]))
    if op == "/" and (problem.b == 0 or problem.a % problem.b):
        return None
    return problem if answer == str(problem.result) else None


def varying(problems: Sequence[ArithmeticProblem]) -> tuple[str, ...]:
    """Those of op, carry and even that differ between the problems: what can be a label.

    >>> varying([ArithmeticProblem(1, "+", 1), ArithmeticProblem(9, "+", 1)])
    ('carry',)
    """
    rows = [columns(*problem) for problem in problems]
    return tuple(name for name in TARGETS if len({row[name] for row in rows}) > 1)


def pose(
    problem: ArithmeticProblem,
    *,
    id: str,
    prompt: str,
    targets: Sequence[str],
    options: Sequence[str] = (),
    group: str | None = None,
) -> Example:
    """The Example of a problem, its columns divided into labels (the targets) and covariates.

    >>> pose(ArithmeticProblem(3, "+", 4), id="a", prompt="3+4=", targets=["even"]).labels["even"]
    0
    """
    known = columns(*problem)
    return Example(
        id=id,
        prompt=prompt,
        answer=str(problem.result),
        foil=near_miss(problem),
        options=tuple(options),
        labels={name: known.pop(name) for name in targets},
        covariates=known,
        group=pair(problem) if group is None else group,
        kind=str(problem.a),
    )


def columns(a: int, op: str, b: int) -> dict[str, Value]:
    """What is known of a problem before it is asked; flags are 0 or 1.

    ``op``, ``carry``, ``even``, ``digits`` (of the first operand), ``operand_a``, ``operand_b``,
    ``result``, ``negative``, ``result_digits``, ``first_digit`` and ``last_digit`` (of the
    result), ``ones_a``, ``ones_b``, ``same_operands``, ``answer_is_operand`` (what copying
    gets right), ``foil_is_operand``, ``contains_zero`` (a digit of an operand). ``carry`` of a
    quotient is that of the product that undoes it.

    >>> columns(17, "+", 5)["carry"], columns(12, "+", 5)["carry"]
    (1, 0)
    """
    result = ArithmeticProblem(a, op, b).result
    text = str(abs(result))
    # Digit sums add up exactly where nothing carries: s(x + y) = s(x) + s(y), s(xy) = s(x) s(y).
    parts = {"+": (a, b), "-": (min(a, b), abs(result)), "*": (a, b), "/": (b, result)}[op]
    whole = {"+": result, "-": max(a, b), "*": result, "/": a}[op]
    sums = [_digit_sum(part) for part in parts]
    plain = sums[0] + sums[1] if op in "+-" else sums[0] * sums[1]
    return {
        "op": op,
        "carry": int(plain != _digit_sum(whole)),
        "even": int(result % 2 == 0),
        "digits": len(str(a)),
        "operand_a": a,
        "operand_b": b,
        "result": result,
        "negative": int(result < 0),
        "result_digits": len(text),
        "first_digit": int(text[0]),
        "last_digit": int(text[-1]),
        "ones_a": a % 10,
        "ones_b": b % 10,
        "same_operands": int(a == b),
        "answer_is_operand": int(result in (a, b)),
        "foil_is_operand": int(near_miss(ArithmeticProblem(a, op, b)) in (str(a), str(b))),
        "contains_zero": int("0" in f"{a}{b}"),
    }


def _digit_sum(number: int) -> int:
    return sum(map(int, str(number)))


def near_miss(problem: ArithmeticProblem) -> str:
    """The result with its leading digit one off: as long, and never with a leading zero.

    >>> near_miss(ArithmeticProblem(3, "+", 4)) in ("6", "8")
    True
    """
    text = str(abs(problem.result))
    lead = int(text[0])
    # Up or down by a digest of the problem: by its parity, the foil would tell the label "even".
    step = 1 if hashlib.sha256(repr(tuple(problem)).encode()).digest()[0] % 2 else -1
    # 0 cannot go down nor 9 up; 1 may become 0 only as the single digit of a positive number.
    lowest = 0 if len(text) == 1 and problem.result > 0 else 1
    if not lowest <= lead + step <= 9:
        step = -step
    return ("-" if problem.result < 0 else "") + str(lead + step) + text[1:]


def pair(problem: ArithmeticProblem) -> str:
    """The operands in ascending order: the group of 3+4, 4+3 and 3*4.

    >>> pair(ArithmeticProblem(4, "*", 3))
    '3,4'
    """
    return "{},{}".format(*sorted((problem.a, problem.b)))
