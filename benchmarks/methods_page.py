"""The tables of ``docs/methods.md``: what each verb and number rests on, from the docstrings.

A docstring says so in a paragraph that begins with ``Source:``. What has none is listed in `OURS`.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lens_skills"
SOURCE = re.compile(
    r"^Source: (.*?)(?=\n\s*\n|\n(?:Assumes|Does not show|Raises):|\n *>>>|\Z)", re.M | re.S
)
ARXIV = re.compile(r"(?:arXiv )?\b(\d{4}\.\d{5})\b")

# Public functions that no paper is the source of, and what they do instead.
OURS = {
    "audit": "`score`'s nulls and `verify`'s verdict, of neurons somebody names",
    "capture": "activations to disk",
    "clamp": "an edit: a value held",
    "compare_methods": "the ways of ranking below, each tried by `sweep`; ours",
    "compare_prompts": "a trained prompt beside its controls; ours",
    "config": "settings that change no result",
    "controls": "how many neurons and sets a verdict is held against",
    "dose_response": "`steer` by several doses, and the damage to neutral text; ours",
    "edited": "an edit as a context manager",
    "endpoint": "a language model that `explain` asks for sentences, and to judge them",
    "equal_length_pairs": "examples whose twins have as many tokens",
    "estimate": "time, memory and disk of a call, measured on small runs of it; ours",
    "export": "tables and graphs as files that other programs read",
    "feature_bank": "columns that an explanation may name",
    "grade": "graders on written texts",
    "layer_profile": "partial r given the model's answer, by layer; ours",
    "load": "opens a saved result",
    "load_model": "opens a model, compared with its Hugging Face original",
    "rank": "one of the ways of ranking below",
    "report": "results as one page",
    "scale": "an edit: a factor",
    "span": "names a position",
    "splice": "texts of several tasks, one after another, to be cut apart again; ours",
    "study": "all steps in one call",
    "sweep": "each unit edited alone, exactly; with `screen`, those of which gradients "
    "(`prescreen`) expect most, and a random sample of the rest",
    "table": "a task from a table",
    "pairs": "a task from pairs",
    "few": "fewer examples of a task, from as many groups",
    "bigbench": "reads BIG-bench's files",
    "agreement": "subject and verb, in our own sentences",
    "covariate": "a column as a metric",
    "label": "a column as a metric",
    "correct": "whether the whole answer is right",
    "first_token_correct": "whether its first token is",
    "model_answer": "what the model answers, as a metric",
    "detectors": "our own rules",
    "from_file": "grades from a file",
    "judge": "grades by a language model",
}


@cache
def public_functions() -> dict[str, str]:
    """Each public function's name as a user types it, and ``module.name`` of its definition."""
    found = {}
    for name, path in imported(PACKAGE / "__init__.pyi").items():
        parts = path.split(".")
        room = PACKAGE / parts[1] / "__init__.py"
        place = imported(room).get(name, path) if room.exists() else path
        if name in ("tasks", "metrics", "graders"):
            file = ROOT.joinpath(*path.split("."))
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            inner = {n: f"{module}.{n}" for n in defined(file)} or imported(file)
            for other, where in inner.items():
                if is_function(where) and other not in INNER:
                    found[f"{name}.{other}"] = where
        elif is_function(place) or name == "config":
            found[name] = place
    return found


# What a room's file hands to other rooms, and is not typed after ``ls.tasks.`` or ``ls.metrics.``.
INNER = (
    "open_task",
    "preflight",
    "pseudo_label",
    "require_examples",
    "answer_tokens",
    "single_token_readout",
    "column_metric",
    "parse_metrics",
    "parse_metric",
    "causal_metric",
    "logit_diff",
    "confidence",
)


def imported(file: Path) -> dict[str, str]:
    """The names a file takes from the package, each with its ``module.name``."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lens_skills")
        for alias in node.names
    }


@cache
def defined(file: Path) -> list[str]:
    """The public functions a file defines."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return [n.name for n in body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


def is_function(path: str) -> bool:
    module, _, name = path.rpartition(".")
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return file.exists() and name in defined(file)


@cache
def docstrings() -> tuple[tuple[Path, str, str], ...]:
    """File, dotted name within it and docstring of everything in the package that has one."""

    def inside(node: ast.AST, above: str) -> Iterator[tuple[str, str]]:
        for child in getattr(node, "body", []):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{above}{child.name}"
                yield name, ast.get_docstring(child) or ""
                yield from inside(child, f"{name}.")

    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found.append((file, "", ast.get_docstring(tree) or ""))
        found += [(file, name, text) for name, text in inside(tree, "")]
    return tuple(found)


def source_of(docstring: str) -> str:
    """What stands after ``Source:``, on one line, arXiv numbers as links; "" where nothing does.

    >>> source_of("It adds.\\n\\nSource: Gauss 1801 (arXiv 1801.00001),\\n  page 1.\\n\\nArgs:")
    'Gauss 1801 ([1801.00001](https://arxiv.org/abs/1801.00001)), page 1.'
    """
    found = SOURCE.search(docstring)
    text = " ".join(found[1].split()) if found else ""
    text = ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", text.replace("``", "`"))
    return text.replace("|", "\\|")


def file_of(path: Path) -> str:
    return f"`{path.relative_to(PACKAGE).as_posix()}`"


def verbs(_: object = None) -> list[list[str]]:
    """Every public function with its source, or what it is made of."""
    texts = {f"{module_of(file)}.{name}": text for file, name, text in docstrings()}
    rows = [["verb", "source", "file"]]
    for name, path in public_functions().items():
        module = path.rpartition(".")[0]
        file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        said = source_of(texts[path]) or OURS.get(name.rpartition(".")[2])
        if said is None:
            raise ValueError(
                f"the docstring of {name} has no paragraph `Source: …`, and OURS in "
                "benchmarks/methods_page.py does not say what it is made of"
            )
        rows.append([f"`ls.{name}`", said, file_of(file)])
    return rows


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def underneath(_: object = None) -> list[list[str]]:
    """Everything else whose docstring names a source."""
    public = set(public_functions().values())
    rows = [["function", "what it gives", "source", "file"]]
    for file, name, text in docstrings():
        said = source_of(text)
        if said and f"{module_of(file)}.{name}" not in public:
            first = text.partition("\n\n")[0].replace("\n", " ").replace("``", "`")
            what = first.replace("|", "\\|")
            rows.append([f"`{name}`" if name else "the file", what, said, file_of(file)])
    return rows


def ranking(_: object = None) -> list[list[str]]:
    """Every way that `rank` and `compare_methods` know."""
    from lens_skills.ranking import METHODS

    rows = [["method", "what it is", "source"]]
    for name, method in METHODS.items():
        said = source_of(f"Source: {method.source}")
        rows.append([f"`{name}`", method.about.replace("|", "\\|"), said])
    return rows
