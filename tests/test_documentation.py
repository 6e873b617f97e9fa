"""The docs run: docstring examples, the pages' Python blocks, the files and commands they name.

The numbers on the pages are what the files of results say.
"""

import ast
import doctest
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
README_BYTES = 10_000  # a page that is read

# ```python blocks, with the line before each, where `<!-- not run: the reason -->` may stand.
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>\S[^\n]*?) -->\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S
)
# What the block before it prints; `…` stands for anything.
PRINTED = re.compile(r"^<!-- printed -->\n```text\n(?P<text>.*?)^```$", re.M | re.S)
SHELL = re.compile(r"^```sh\n(?P<code>.*?)^```$", re.M | re.S)
# Lines of a file tree: leading branches or blanks, then a path, then what it is.
TREE = re.compile(r"^```(?:text|tree)?\n(?P<tree>[\w.-]+/\s.*?)^```$", re.M | re.S)
# Files and folders of the repository, and of the package, in the text or in a command.
NAMED = re.compile(r"(?<![\w/.-])(?:benchmarks|docs|figures|notebooks|tests|training)/[\w./-]*\w")
MODULE = re.compile(r"`(?P<path>[\w/]+\.py)`")
MADE = ("figures/demo",)  # by a command, and not kept


def page_name(page: Path) -> str:
    """``README``, ``howto/hooks``: the page as the site calls it."""
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


each = pytest.mark.parametrize("page", PAGES, ids=page_name)
# Pages of errors are run by test_error_pages.py: there code has to fail.
runs = [page for page in PAGES if page.parent.name != "errors"]


def modules() -> list[str]:
    """Every module of the package by its dotted name."""
    paths = sorted((ROOT / "lens_skills").rglob("*.py"))
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in dotted]


def blocks(text: str) -> list[tuple[int, str, str | None]]:
    """Of each Python block: the lines before it, its code, and the reason not to run it or None."""
    return [
        (text[: block.start("code")].count("\n"), block["code"], block["reason"])
        for block in BLOCK.finditer(text)
    ]


def tree_paths(tree: str) -> list[str]:
    """The paths a file tree names, children indented below their folder.

    >>> tree_paths("a/   what a is\\n  b.py   text\\n  c/\\n    d.py, e.py   both\\nf.py\\n")
    ['a', 'a/b.py', 'a/c', 'a/c/d.py', 'a/c/e.py', 'f.py']
    """
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in tree.splitlines():
        entry = re.match(r"^(?P<indent>[\s│├└─|`-]*)(?P<names>[\w.*-]+/?(?:, [\w.*-]+/?)*)", line)
        if not entry:
            continue
        depth = len(entry["indent"])
        folders = [(at, folder) for at, folder in folders if at < depth]
        above = folders[-1][1] if folders else ""
        for name in entry["names"].split(", "):
            paths.append(above + name.rstrip("/"))
            if name.endswith("/"):
                folders.append((depth, above + name))
    return paths


def script(name: str) -> Any:
    """A file of the benchmarks, which are no part of the package."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    """They import what they use, so each reads as a user would type it."""
    module = importlib.import_module(name)
    found = doctest.testmod(
        module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, verbose=False
    )
    assert found.failed == 0, f"{found.failed} of {found.attempted} examples in {name}"


def printed(text: str) -> list[str]:
    """Of each Python block, what the page says it prints, or ""."""
    starts = [block.start() for block in BLOCK.finditer(text)]
    said = [""] * len(starts)
    for found in PRINTED.finditer(text):
        said[sum(start < found.start() for start in starts) - 1] = found["text"]
    return said


def same_text(wanted: str, got: str) -> bool:
    """Whether they are the same up to blanks and what ``…`` stands for.

    >>> same_text("a … c\\n", "a  b\\nc\\n"), same_text("a\\n", "b\\n")
    (True, False)
    """
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(wanted.replace("…", "..."), got, flags)


@pytest.mark.slow
@pytest.mark.parametrize("page", runs, ids=page_name)
def test_the_blocks_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In order and in one namespace, in an empty folder, as a reader would paste them."""
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace: dict[str, Any] = {"__name__": page.stem}
    for (line, code, reason), said in zip(blocks(text), printed(text), strict=True):
        if reason is None:
            capsys.readouterr()
            # Blank lines in front, so that a traceback names the page's own line.
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
            shown = capsys.readouterr().out
            assert not said or same_text(said, shown), f"line {line} prints:\n{shown}"
    if page.name == "README.md":
        plain, steered = namespace["plain"], namespace["steered"]
        assert plain != steered, "the steering example shows no difference"
        assert f"# {plain}\n" in text
        assert f"# {steered}\n" in text


def test_the_blocks_that_are_not_run_are_python() -> None:
    for page in PAGES:
        for line, code, _ in blocks(page.read_text(encoding="utf-8")):
            compile("\n" * line + code, str(page), "exec")


def unknown_options(code: str) -> list[str]:
    """Options of calls to ``ls.name(…)`` that the function does not take, where code cannot run.

    >>> unknown_options("ls.select(scores, again, level=0.1)\\nls.ablate('mean', over=scores)")
    ['ls.select(level=)']
    """
    import lens_skills as ls

    found = []
    for call in ast.walk(ast.parse(code)):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        if not re.fullmatch(r"ls(\.\w+)+", name):
            continue
        value: Any = ls
        for word in name.split(".")[1:]:
            value = getattr(value, word)
        takes = inspect.signature(value).parameters
        if any(taken.kind is taken.VAR_KEYWORD for taken in takes.values()):
            continue
        options = [option.arg for option in call.keywords if option.arg]
        found += [f"{name}({option}=)" for option in options if option not in takes]
    return found


@pytest.mark.parametrize("page", runs, ids=page_name)
def test_calls_on_a_page_are_of_today(page: Path) -> None:
    """Also in the blocks that are too long to run."""
    for _, code, _ in blocks(page.read_text(encoding="utf-8")):
        assert unknown_options(code) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_calls_in_a_notebook_are_of_today(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert unknown_options("".join(cell["source"])) == []


@each
def test_what_a_page_names_exists(page: Path) -> None:
    """Links from where the page stands, file trees, and paths in the text and its commands."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    trees = [path for tree in TREE.finditer(text) for path in tree_paths(tree["tree"])]
    named = [path for path in NAMED.findall(text) if not path.startswith(MADE)]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in [*trees, *named] if not list(ROOT.glob(path))]
    for path in MODULE.findall(text):
        # In a table of rooms the second file of a row is named by itself.
        if not any(list(folder.rglob(path)) for folder in (ROOT / "lens_skills", ROOT / "tests")):
            missing += [] if (ROOT / path).exists() else [path]
    assert missing == []


def shell_help(command: str) -> str:
    """What ``lens-skills COMMAND --help`` prints; fails where there is no such command."""
    code = "from lens_skills.cli import main; main()"
    asked = [sys.executable, "-c", code, command, "--help"]
    wide = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    return subprocess.run(asked, capture_output=True, text=True, check=True, env=wide).stdout


@each
def test_what_a_page_types_in_the_shell_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for block in SHELL.finditer(page.read_text(encoding="utf-8")):
        for line in block["code"].replace("\\\n", " ").splitlines():
            words = line.partition("#")[0].split()
            if words[:1] == ["make"]:
                assert words[1] in targets, line
            if words[:1] == ["lens-skills"]:
                offered = shell_help(words[1])
                assert not [word for word in words if word[:2] == "--" and word not in offered]


def test_the_verbs_in_the_readme_are_public() -> None:
    import lens_skills as ls

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("| question | verb |")[1].split("\n\n")[0]
    verbs = re.findall(r"`(\w+)`", table)
    assert len(verbs) > 20
    assert set(verbs) <= set(ls.__all__)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def test_the_numbers_on_the_pages_are_those_of_the_results() -> None:
    pages = script("render_docs")
    stale = [str(path.relative_to(ROOT)) for path in pages.stale(pages.read_results())]
    assert stale == [], "run python benchmarks/render_docs.py"


def test_a_changed_number_makes_a_page_stale() -> None:
    pages = script("render_docs")
    results = pages.read_results()
    for name, page in (("scoring_hooked", "measurements"), ("settings_arithmetic", "results")):
        key = next(key for key in results[name] if key not in pages.ABOUT)
        changed = results | {name: results[name] | {key: results[name][key] + 1}}
        assert page in {path.stem for path in pages.stale(changed)}


def test_every_verb_says_what_it_rests_on() -> None:
    """In its docstring, or in the list of those that no paper is the source of; not in both."""
    import lens_skills as ls

    page = script("methods_page")
    functions = {name for name in ls.__all__ if inspect.isfunction(getattr(ls, name))}
    listed = {name.strip("`").removeprefix("ls.") for name, *_ in page.verbs()}
    assert functions <= listed
    sourced = {f"{page.module_of(file)}.{name}" for file, name, text in page.docstrings()
               if page.source_of(text)}  # fmt: skip
    places = page.public_functions()
    ours = {name for name, place in places.items() if place not in sourced}
    assert {name.rpartition(".")[2] for name in ours} == set(page.OURS)
    text = "One.\n\nSource: Gauss 1801 (arXiv 1801.00001),\npage 1.\nAssumes: no."
    assert (
        page.source_of(text)
        == "Gauss 1801 ([1801.00001](https://arxiv.org/abs/1801.00001)), page 1."
    )
    assert page.source_of("One.\n\nThe Source: none.") == ""


def test_results_without_their_command_are_refused(tmp_path: Path) -> None:
    pages = script("render_docs")
    whole: dict[str, Any] = dict.fromkeys(pages.ABOUT, "said") | {"x_vs_y": 2.0}
    (tmp_path / "one.json").write_text(json.dumps(whole))
    assert pages.read_results(tmp_path) == {"one": whole}
    for key in pages.ABOUT:
        (tmp_path / "one.json").write_text(json.dumps(whole | {key: ""}))
        with pytest.raises(ValueError, match=f"one.json lacks {key}"):
            pages.read_results(tmp_path)
    (tmp_path / "one.json").write_text(json.dumps(whole | {"x_vs_y": "about two"}))
    with pytest.raises(ValueError, match="x_vs_y is no number"):
        pages.read_results(tmp_path)


def test_what_a_benchmark_saves_is_what_the_pages_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, timing = script("render_docs"), script("timing")
    figures = {"score_vs_forward": 1.23456, "neurons": 46080.0, "rows": 34468}
    for argv, part, name, command in (
        ("scoring.py hooked --save", "hooked", "scoring_hooked", "scoring.py hooked"),
        ("settings/hans.py --hans F --save", "", "settings_hans", "settings/hans.py --hans F"),
    ):
        monkeypatch.setattr("sys.argv", f"{ROOT}/benchmarks/{argv}".split())
        assert timing.save(part, figures, folder=tmp_path).stem == name
        saved = pages.read_results(tmp_path)[name]
        assert saved["command"] == f"python benchmarks/{command}"
        assert "cores" in saved["machine"]
        assert "torch" in saved["versions"]
        kept = {key: value for key, value in saved.items() if key not in pages.ABOUT}
        assert kept == {"score_vs_forward": 1.235, "neurons": 46080, "rows": 34468}


def test_a_smoke_run_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    timing = script("timing")
    asked = timing.arguments("", quick="few").parse_args(["--quick", "--save"])
    with pytest.raises(SystemExit, match="no measurement"):
        timing.run_parts({"a": lambda: {"x": 1.0}}, asked)
    asked = timing.arguments("", quick="few").parse_args(["--quick"])
    timing.run_parts({"a": lambda: {"x": 1.0}, "b": lambda: {"y": 0.5}}, asked, only="b")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"y": 0.5}


def test_the_readers_of_this_file() -> None:
    run, not_run, shell = "```python\nx = 1\n```\n", "```python\ny\n```\n", "```sh\nz\n```\n"
    found = blocks(f"a\n{run}<!-- not run: needs a GPU -->\n{not_run}{shell}")
    assert found == [(2, "x = 1\n", None), (6, "y\n", "needs a GPU")]
    assert unknown_options("ls.select(a, b, level=0.1)") == ["ls.select(level=)"]
    assert unknown_options("ls.tasks.few(x, 2, seed=0)\nmine(y=1)") == []
    both = f"{run}<!-- printed -->\n```text\n1 … 2\n```\n"
    assert printed(f"{not_run}{both}{run}") == ["", "1 … 2\n", ""]
    assert same_text("1 … 2\n", "1 a\nb 2\n")
    assert not same_text("1 … 2\n", "1 a 3\n")
    paths = tree_paths("a/   what\n  b.py   text\n  c/\n    d.py, e.py   both\nf.py\n")
    assert paths == ["a", "a/b.py", "a/c", "a/c/d.py", "a/c/e.py", "f.py"]
    drawn = tree_paths("a/\n├── b.py   text\n└── c/\n    └── d.py\n")
    assert drawn == ["a", "a/b.py", "a/c", "a/c/d.py"]
    assert [tree["tree"] for tree in TREE.finditer("```\na/  x\n  b\n```\n")] == ["a/  x\n  b\n"]
    assert NAMED.findall("`pytest tests/a tests/b.py` (figures/c), lens/tests/d") == [
        "tests/a",
        "tests/b.py",
        "figures/c",
    ]
