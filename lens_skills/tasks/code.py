"""`code`: Python source, cut after a token, and what that token is by Python's own reading."""

import ast
import io
import keyword
import os
import platform
import random
import re
import sys
import sysconfig
import tokenize
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.tasks.task import Task

TOKEN_CLASSES = ("number", "string", "keyword", "name", "operator")
"""The values of the label ``token``."""

# Of the standard library: tests hold code that is wrong on purpose, and tables are no code.
_NO_CODE = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "encodings",
            "pydoc_data", "__phello__"}  # fmt: skip
LARGEST = 200_000
"""Bytes of a file beyond which it is taken for generated and left out."""

_SHORT = 25_000  # bytes of a module of the library, so that sixty are read in seconds
_LONGEST = 12  # characters of what follows; a longer piece is rarely one thing
_PIECE = re.compile(r"\w+|[^\w\s]")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*_FUNCTIONS, ast.ClassDef)


def code(
    n: int = 600,
    seed: int = 0,
    *,
    folder: str | os.PathLike[str] | None = None,
    n_modules: int = 60,
    context: int = 200,
    model: Any = None,
) -> Task:
    """A Task of Python source, each prompt cut after one token: what kind of token was that?

    The source is the standard library of the Python that runs (its modules of at most 25 kB), so
    the same Python, seed and arguments make the same task; its version is in ``split_name``. A
    prompt is the token's own line up to it and as many whole statements' lines before as fit in
    ``context``; the token is its end, so position ``"last"`` is its last model token, and
    ``ls.span(column="text", take="mean")`` all of its model tokens. The answer is what follows: the
    space before, and the next token (in a string: the next word or sign).

    Labels: ``token``: one of `TOKEN_CLASSES`, in equal numbers as far as there are; a *string* is
    a word or sign inside a literal, a *name* is no keyword. ``in_string`` 0/1. ``depth``: blocks
    around it (open indents), 0 and above. ``brackets``: open ones, 0 and above. ``in_function``
    0/1. ``defined`` 0/1: a name that is bound in a function around it or in the module (assigned,
    imported, a parameter, a def or a class); attributes, keyword arguments, built-ins and all that
    is no name are 0, so ask it of ``task.where(token="name")``.
    Covariates: ``form``: word, digits or sign, whatever it means: digits in a string are no
    number, so with ``form`` as covariate a neuron for digits is told from one for numbers;
    ``text``, ``column`` (characters before it in its line), ``n_lines``, ``n_characters``.
    The group is the module, which no split divides; the kind is the token's text. Comments and
    f-strings are never the token.

    Args:
        n: Examples at most; a small folder gives fewer.
        seed: Which modules, and which tokens of them.
        folder: Instead of the standard library all ``.py`` files in here (hidden folders and
            ``site-packages`` left out); the group is the path.
        n_modules: At most so many, drawn by the seed; each gives about as many tokens.
        context: Characters of a prompt, 20 or more, at most.
        model: Leave out what this model's tokenizer joins with what follows (``)`` before ``:``),
            which an answer would be refused for; ``split_name`` says how many.

    Files that do not parse, cannot be read or are beyond `LARGEST` bytes are left out, and
    counted in ``split_name``.

    Raises:
        LensSkillsError: No such folder, no Python in it, or none that parses; no token left; a
            Python without its library's source.

    Source: labels from the tokenizer, as in arXiv 2305.00875 (several languages there).

    Does not show: that a token's class is what a neuron reads; ``text`` and ``form`` go with it.

    >>> task = code(50, n_modules=10)
    >>> sorted(set(task.column("token")))
    ['keyword', 'name', 'number', 'operator', 'string']
    >>> all(example.prompt.endswith(example.column("text")) for example in task)
    True
    """
    if n < 1 or n_modules < 1 or context < 20:
        raise LensSkillsError(
            f"code(n={n}, n_modules={n_modules}, context={context}): an example and a module are "
            "the least, and 20 characters of context."
        )
    found, where = _library() if folder is None else _files(Path(folder))
    order = random.Random(seed).sample(found, len(found))
    adapter = None if model is None else as_adapter(model)
    whole = -(-n // len(TOKEN_CLASSES))
    share = -(-whole // min(n_modules, len(found)))
    drawn: list[dict[str, list[Example]]] = []
    unread = joined = 0
    for name, path in order:
        if len(drawn) == n_modules:
            break
        points = _points_of(path, context)
        if points is None:
            unread += 1
            continue
        chosen, lost = _chosen(points, name, share if folder is None else whole, seed, adapter)
        joined += lost
        if folder is None and any(len(kept) < share for kept in chosen.values()):
            continue
        drawn.append(chosen)
    if not drawn:
        raise LensSkillsError(
            f"none of the {unread:,} Python files in {where} parses (as Python "
            f"{platform.python_version()} reads it). Give code that runs here."
        )
    examples = _in_turns(drawn, n)
    if not examples:
        why = f"this model's tokenizer joins all {joined:,} with what follows" if joined else (
            "they hold no token with another one behind it on its line"
        )  # fmt: skip
        raise LensSkillsError(f"no token is left of {len(drawn):,} modules of {where}: {why}.")
    lost = [f"{unread:,} files left out, which do not parse or are too large"] if unread else []
    lost += [f"{joined:,} tokens left out, which the tokenizer joins"] if joined else []
    words = "; ".join([f"{where}, {len({e.group for e in examples}):,} modules", *lost])
    return Task("code", examples, split_name=words, recipe=where)


def _library() -> tuple[list[tuple[str, Path]], str]:
    """Modules of the standard library by name, and what they are called together."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for module in sorted(sys.stdlib_module_names - _NO_CODE):
        inside = [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]
        for path in inside if not module.startswith("_sysconfigdata") else []:
            parts = path.relative_to(root).with_suffix("").parts
            if not _NO_CODE & set(parts) and path.is_file() and path.stat().st_size <= _SHORT:
                found.append((".".join(parts), path))
    if not found:
        raise LensSkillsError(
            "this Python comes without the source of its library. Give folder=, with code."
        )
    return found, f"the standard library of Python {platform.python_version()}"


def _files(folder: Path) -> tuple[list[tuple[str, Path]], str]:
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise LensSkillsError(f"code(folder={str(folder)!r}): that is {what}. Name a folder.")
    found = []
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "site-packages" for part in inside.parts)
        if path.is_file() and not hidden:
            found.append((inside.as_posix(), path))
    if not found:
        raise LensSkillsError(f"no .py file in {str(folder)!r}. Name a folder that holds code.")
    return found, folder.resolve().name


@dataclass(frozen=True)
class _Point:
    """A token to cut after."""

    prompt: str
    answer: str
    text: str
    labels: dict[str, Any]
    covariates: dict[str, Any]


Points = dict[str, list[Callable[[], list[_Point]]]]
"""For each class its tokens, each with what finds where it can be cut (a string at several)."""


def _points_of(path: Path, context: int) -> Points | None:
    """Every token that can be asked about; None where the file does not parse."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        with tokenize.open(path) as file:
            source = file.read()
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        scopes = _scopes(tree)
    except (OSError, SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return None
    points: Points = {kind: [] for kind in TOKEN_CLASSES}
    for kind, cuts in _cuts(source, tokens, scopes, context):
        points[kind].append(cuts)
    return points


@dataclass(frozen=True)
class _Names:
    """What a scope binds, and where it lies."""

    start: tuple[int, int]
    end: tuple[int, int]
    bound: frozenset[str]
    function: bool

    def holds(self, place: tuple[int, int]) -> bool:
        return self.start <= place < self.end


@dataclass(frozen=True)
class _Scopes:
    """Scopes from the outside to the inside, the module first; and where names are no names."""

    names: list[_Names]
    keywords: frozenset[tuple[int, int]]

    def around(self, place: tuple[int, int]) -> list[_Names]:
        return [scope for scope in self.names if scope.holds(place)]

    def defines(self, text: str, place: tuple[int, int]) -> bool:
        """Whether a name is bound where it stands; a class's own only directly in the class."""
        around = self.around(place)
        seen = [s for s in around if s.function or s is around[0] or s is around[-1]]
        return any(text in scope.bound for scope in seen)


def _scopes(tree: ast.Module) -> _Scopes:
    found = [_Names((0, 0), (sys.maxsize, 0), _bound(tree), False)]
    keywords = set()
    for node in ast.walk(tree):
        if isinstance(node, _SCOPES):
            # ast counts bytes and tokenize characters; indents are the same in both.
            start = (node.lineno, node.col_offset)
            end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
            function = isinstance(node, _FUNCTIONS)
            found.append(_Names(start, end, _bound(node), function))
        elif isinstance(node, ast.keyword) and node.arg:
            keywords.add((node.lineno, node.col_offset))
    return _Scopes(found, frozenset(keywords))


def _bound(scope: ast.AST) -> frozenset[str]:
    """The names a scope binds itself, comprehensions' included, inner functions' not."""
    names: set[str] = set()
    if isinstance(scope, _FUNCTIONS):
        arguments = scope.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [one for one in (arguments.vararg, arguments.kwarg) if one]
        names |= {one.arg for one in every}
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
        if not isinstance(node, _SCOPES):
            waiting += ast.iter_child_nodes(node)
    return frozenset(names)


def _cuts(
    source: str, tokens: Sequence[tokenize.TokenInfo], scopes: _Scopes, context: int
) -> Iterator[tuple[str, Callable[[], list[_Point]]]]:
    """Each token's class, with what finds the places to cut at."""
    lines = source.splitlines(keepends=True)
    depth = brackets = inside_f = 0
    statements = [1]  # the lines where a statement begins
    f_start, f_end = (getattr(tokenize, f"FSTRING_{end}", -1) for end in ("START", "END"))
    for place, token in enumerate(tokens[:-1]):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        inside_f += (token.type == f_start) - (token.type == f_end)
        if token.type == tokenize.NEWLINE:
            statements.append(token.end[0] + 1)
        closes = token.type == tokenize.OP and token.string in ")]}"
        brackets -= closes
        kind = None if inside_f else _class(token)
        after = tokens[place + 1]
        if kind is not None:
            about = _Around(lines, statements, len(statements), scopes, context, depth, brackets)
            if kind == "string":
                yield kind, partial(about.in_literal, token)
            else:
                before = tokens[place - 1].string if place else ""
                yield kind, partial(about.at, kind, token, after, before)
        brackets += token.type == tokenize.OP and token.string in "([{"


def _class(token: tokenize.TokenInfo) -> str | None:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if token.type == tokenize.STRING:
        prefix = re.match(r"[a-zA-Z]*", token.string)
        return None if prefix and "f" in prefix[0].lower() else "string"
    return {tokenize.NUMBER: "number", tokenize.OP: "operator"}.get(token.type)


@dataclass(frozen=True)
class _Around:
    """What is known where a token stands."""

    lines: Sequence[str]
    statements: Sequence[int]
    n_statements: int
    scopes: _Scopes
    context: int
    depth: int
    brackets: int

    def at(
        self, kind: str, token: tokenize.TokenInfo, after: tokenize.TokenInfo, before: str
    ) -> list[_Point]:
        """The token and what follows on its line."""
        (row, end), text = token.end, after.string
        if after.start[0] != row or not text.strip() or after.type == tokenize.COMMENT:
            return []
        answer = self.lines[row - 1][end : after.start[1]] + text
        named = kind == "name" and before != "." and token.start not in self.scopes.keywords
        own = before in ("def", "class")  # bound outside of the scope that begins here
        defined = named and (own or self.scopes.defines(token.string, token.start))
        return self._point(kind, token.string, token.start, (row, end), answer, defined)

    def in_literal(self, token: tokenize.TokenInfo) -> list[_Point]:
        """Each word and sign inside a literal, with the next one."""
        opening = re.match(r"[a-zA-Z]*(\"\"\"|'''|\"|')", token.string)
        if opening is None:
            return []
        begin, inside = opening.end(), token.string[opening.end() : -len(opening[1])]
        pieces = list(_PIECE.finditer(inside))
        starts = [0, *(m.end() for m in re.finditer("\n", token.string))]
        found = []
        for piece, after in pairwise(pieces):
            answer = inside[piece.end() : after.end()]
            if "\n" in answer or answer[:1] == "\\":
                continue
            ends = []
            for offset in (begin + piece.start(), begin + piece.end()):
                line = bisect_right(starts, offset) - 1
                shift = token.start[1] if line == 0 else 0
                ends.append((token.start[0] + line, offset - starts[line] + shift))
            found += self._point("string", piece[0], ends[0], ends[1], answer, False)
        return found

    def _point(
        self,
        kind: str,
        text: str,
        start: tuple[int, int],
        end: tuple[int, int],
        answer: str,
        defined: bool,
    ) -> list[_Point]:
        own = self.lines[end[0] - 1][: end[1]]
        # From the beginning of a statement, so that no quote is closed that was never opened.
        last = self.n_statements - 1
        prompt = None
        while last >= 0:
            first = self.statements[last]
            whole = "".join(self.lines[first - 1 : end[0] - 1]) + own
            if len(whole) > self.context:
                break
            if whole.strip():
                prompt = whole
            last -= 1
        if prompt is None or len(answer) > _LONGEST or "\t" in answer:
            return []
        form = "digits" if text[0].isdigit() else "word" if re.match(r"\w", text) else "sign"
        labels = {
            "token": kind,
            "in_string": int(kind == "string"),
            "depth": self.depth,
            "brackets": self.brackets,
            "in_function": int(any(s.function for s in self.scopes.around(start))),
            "defined": int(defined),
        }
        covariates = {
            "form": form,
            "text": text,
            "column": start[1],
            "n_lines": prompt.count("\n") + 1,
            "n_characters": len(prompt),
        }
        return [_Point(prompt.lstrip("\n"), answer, text, labels, covariates)]


def _chosen(
    points: Points, name: str, most: int, seed: int, adapter: Any
) -> tuple[dict[str, list[Example]], int]:
    """At most so many of a module's tokens of each class; how many were joined and passed over."""
    draw, joined = random.Random(f"{seed}/{name}"), 0
    chosen: dict[str, list[Example]] = {}
    for kind in TOKEN_CLASSES:
        kept, seen = [], set()
        for find in draw.sample(points[kind], len(points[kind])):
            if len(kept) == most:
                break
            cuts = find()
            if not cuts or (point := draw.choice(cuts)).prompt in seen:
                continue
            seen.add(point.prompt)
            example = Example(
                id=f"{name} {kind} {len(kept)}",
                prompt=point.prompt,
                answer=point.answer,
                labels=point.labels,
                covariates=point.covariates,
                group=name,
                kind=point.text,
            )
            if adapter is not None and _joined(adapter, example):
                joined += 1
                continue
            kept.append(example)
        chosen[kind] = kept
    return chosen, joined


def _joined(adapter: Any, example: Example) -> bool:
    """Whether the model reads the token together with what follows as other tokens."""
    try:
        encode_examples(adapter, [example], answers=True)
    except LensSkillsError:
        return True
    return False


def _in_turns(drawn: Sequence[dict[str, list[Example]]], n: int) -> list[Example]:
    """At most n: each module gives a token of each class in its turn, in the modules' order."""
    quota = Counter({kind: -(-n // len(TOKEN_CLASSES)) for kind in TOKEN_CLASSES})
    taken: list[Example] = []
    for turn in range(n):
        before = len(taken)
        for module in drawn:
            for kind in TOKEN_CLASSES:
                if turn < len(module[kind]) and quota[kind] > 0 and len(taken) < n:
                    taken.append(module[kind][turn])
                    quota[kind] -= 1
        if len(taken) == before:
            break
    place = {example.id: turn for turn, example in enumerate(taken)}
    order = {name: turn for turn, name in enumerate(dict.fromkeys(e.group for e in taken))}
    return sorted(taken, key=lambda example: (order[example.group], place[example.id]))
