"""What MkDocs is told beyond docs/: pages that come from elsewhere in the repository.

The README is the home page; notebooks, the changelog and the pages beside the figures are pages;
each room of the package is a page of the API. Every page keeps the links it has in the repository:
they are rewritten here to where the file stands in the site.
"""

import ast
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Pages of the site that are files of the repository outside docs/.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "lens_skills/models/arithmetic_small/README.md": "arithmetic_small.md",
    "notebooks/README.md": "notebooks/index.md",
}
# The rooms in the order in which data walks through them.
ROOMS = {
    "models": "Models",
    "tasks": "Tasks",
    "activations": "Activations and metrics",
    "scoring": "Scoring",
    "soft_prompts": "Soft prompts",
    "generation": "Free text",
    "interventions": "Interventions",
    "explanation": "Explanation",
    "diagnostics": "Diagnostics",
    "ranking": "Ranking",
    "circuits": "Circuits",
    "finetuning": "Fine-tuning",
    "resampling": "Stability",
    "plotting": "Figures",
    "reporting": "Reports",
    "publishing": "Publishing",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|<)(?P<path>[^)#\s]+)(?P<rest>#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^(```.*?^```)$", re.M | re.S)
# A run of lines that begins with >>> and ends at the next empty line.
DOCTEST = re.compile(r"((?:^|(?<=\n)) *>>> .*?(?=\n\s*\n|\Z))", re.S)
CODE = re.compile(r"^::: (\S+)\n.*?heading: (\S+)", re.M | re.S)
# A list right below a line of text, which GitHub takes for a list and Python-Markdown does not.
LIST = re.compile(r"^([^\s|>#-].*)\n(?=- )", re.M)
PRINTED = re.compile(r"^<!-- printed -->\n", re.M)
NOT_RUN = re.compile(r"^<!-- not run: (.*?) -->$", re.M)
COLOUR = re.compile(r"(?<![\w(\"':])#[0-9A-F]{6}\b")
COMMENT_LINE = re.compile(r"^<!--.*?-->$", re.M | re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)


def on_config(config: Any) -> Any:
    """Lists the pages of a folder where the navigation names the folder."""
    pages = {"notebooks/": notebook_nav(), "api/": api_nav(), "errors/": error_nav()}
    for entry in config.nav:
        (title, place), *_ = entry.items()
        if isinstance(place, str) and place in pages:
            entry[title] = pages[place]
    if "changelog.md" in pages_elsewhere().values():
        config.nav.append({"Changelog": "changelog.md"})
    return config


def notebook_nav() -> list[Any]:
    """The notebooks by their titles."""
    found: list[Any] = ["notebooks/index.md"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        title = heading_of(notebook(path))
        found.append({f"{path.stem[:2]} · {title}": f"notebooks/{path.stem}.md"})
    return found


def api_nav() -> list[Any]:
    """The rooms."""
    titles = {**ROOMS, "more": "Studies, results, settings", "shell": "Shell"}
    return ["api/index.md", *({title: f"api/{room}.md"} for room, title in titles.items())]


def shell_page() -> str:
    """Every command of the shell with its arguments and options."""
    import typer

    from lens_skills.cli.app import app

    group: Any = typer.main.get_command(app)
    parts = ["# Shell", "`lens-skills COMMAND --help` says the same. Exit codes and `--json` are"
             " [here](../howto/shell.md)."]  # fmt: skip
    for name, command in group.commands.items():
        said = " ".join((command.help or "").split())
        rows = ["| | what it is | default |", "|---|---|---|"]
        for option in command.params:
            # Not every default is one: flags are off, and what is required has none.
            said_default = option.default not in (None, [], ()) and option.default is not False
            shown = option.default if said_default and not option.required else ""
            words = " ".join((option.help or "").split())
            names = " ".join(option.opts) if option.param_type_name == "option" else option.name
            rows.append(f"| `{names}` | {words} | {shown} |".replace("RUN|TASK", "RUN or TASK"))
        parts += [f"## lens-skills {name}", said, "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def error_nav() -> list[Any]:
    """The first page, then each error."""
    return sorted(
        (
            path.relative_to(ROOT / "docs").as_posix()
            for path in (ROOT / "docs/errors").glob("*.md")
        ),
        key=lambda page: (not page.endswith("index.md"), page),
    )


def heading_of(text: str) -> str:
    """The first heading of a page."""
    return re.search(r"^# (.*)$", text, re.M)[1]  # type: ignore[index]


def on_files(files: Files, config: Any) -> Files:
    """Adds what is not in docs/."""
    for path, page in pages_elsewhere().items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, page, content=notebook(path)))
    if not (ROOT / "notebooks" / "README.md").exists():
        items = [
            f"- [{t}]({Path(p).name})" for entry in notebook_nav()[1:] for t, p in entry.items()
        ]
        text = "# Notebooks\n\nThe story step by step; the tests run them.\n\n" + "\n".join(items)
        files.append(File.generated(config, "notebooks/index.md", content=text))
    for path in sorted((ROOT / "figures").rglob("*")):
        if path.suffix in (".png", ".svg", ".pdf", ".csv") and "demo" not in path.parts:
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for room, text in api_pages().items():
        files.append(File.generated(config, f"api/{room}.md", content=text))
    return files


def pages_elsewhere() -> dict[str, str]:
    """Each file outside docs/ that is a page, and its place in the site."""
    found = {path: page for path, page in ELSEWHERE.items() if (ROOT / path).exists()}
    for path in sorted((ROOT / "figures").glob("*/**/*.md")):
        name = path.relative_to(ROOT).as_posix()
        found[name] = name.replace("README.md", "index.md")
    return found


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that lead where the files stand in the site; comments taken out."""
    source = page.file.src_uri
    places = {page: path for path, page in pages_elsewhere().items()}
    path = places.get(source) or (source if source.startswith("notebooks/") else f"docs/{source}")
    parts = FENCE.split(markdown)
    parts[::2] = [rewritten(part, path, source) for part in parts[::2]]
    return "".join(parts)


def rewritten(text: str, path: str, source: str) -> str:
    """The text of a repository's file, outside code, as the site's page of that name."""

    def link(found: re.Match[str]) -> str:
        target = os.path.normpath(Path(path).parent / found["path"])
        place = place_in_site(Path(target).as_posix())
        if place is None:
            return found[0]  # MkDocs says that it leads nowhere
        return os.path.relpath(place, Path(source).parent) + (found["rest"] or "")

    text = COLOUR.sub(r'<span class="swatch" style="background: \g<0>"></span> `\g<0>`', text)
    text = LIST.sub("\\1\n\n", LINK.sub(link, text))
    text = PRINTED.sub('<p class="not-run">It prints:</p>\n\n', text)
    text = NOT_RUN.sub(r'<p class="not-run">Not run by the tests: \1.</p>\n', text)
    return COMMENT.sub("", COMMENT_LINE.sub("\n", text))


def place_in_site(path: str) -> str | None:
    """Where a file of the repository stands in the site, or None."""
    if path in (elsewhere := pages_elsewhere()):
        return elsewhere[path]
    if path == "notebooks":
        return "notebooks/index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".ipynb"):
        return path.replace(".ipynb", ".md")
    return path if path.startswith("figures/") else None


def notebook(path: Path) -> str:
    """A notebook as Markdown: its texts, code and what each cell printed or drew."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif cell["cell_type"] == "code" and text:
            parts.append(fenced(text, "python"))
            parts += [shown for output in cell["outputs"] if (shown := output_text(output))]
    return "\n\n".join(parts) + "\n"


def output_text(output: dict[str, Any]) -> str:
    """What a cell left, as Markdown: a picture, or else its text."""
    if output["output_type"] == "stream":
        return "" if output["name"] == "stderr" else fenced("".join(output["text"]), "text")
    data = output.get("data", {})
    if "image/png" in data:
        encoded = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="figure" src="data:image/png;base64,{encoded}">'
    return fenced("".join(data["text/plain"]), "text") if "text/plain" in data else ""


def fenced(text: str, language: str) -> str:
    """A code block, whatever stands in it."""
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def exported(file: Path) -> dict[str, str]:
    """The names a room's file hands out, each with the module that defines it."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lens_skills")
        for alias in node.names
    }


def api_pages() -> dict[str, str]:
    """A page per room: the public verbs, as ``ls.NAME``, then what else the room hands out."""
    package = ROOT / "lens_skills"
    public = exported(package / "__init__.pyi")
    pages = {}
    for room, title in ROOMS.items():
        parts = [f"# {title}", lead(package / room / "__init__.py")]
        names = exported(package / room / "__init__.py")
        ours = [name for name, path in public.items() if path == f"lens_skills.{room}.{name}"]
        for name in ours:
            if name in names:
                parts.append(documented(f"ls.{name}", names[name]))
        for name in ours:
            if name not in names:  # a file of functions: ls.metrics, ls.graders, ls.figures
                parts += [f"## ls.{name}", *functions(package / room / f"{name}.py", f"ls.{name}")]
        others = {name: path for name, path in names.items() if name not in ours}
        if room == "tasks":
            parts += [documented(f"ls.tasks.{name}", path) for name, path in others.items()]
        elif others:
            parts.append(f"## Also in `lens_skills.{room}`")
            parts += [
                documented(name, path) for name, path in others.items() if name.isidentifier()
            ]
        pages[room] = "\n\n".join(parts) + "\n"
    rest = [name for name, path in public.items() if path.split(".")[1] not in ROOMS]
    pages["more"] = "\n\n".join(
        [
            "# Studies, results and settings",
            *(documented(f"ls.{name}", defined_at(name, public[name])) for name in rest),
        ]
    )
    pages["index"] = api_index(pages, public)
    pages["shell"] = shell_page()
    return pages


def defined_at(name: str, path: str) -> str:
    """Where a name is defined that the package takes from a room."""
    file = ROOT / "lens_skills" / path.split(".")[1] / "__init__.py"
    return exported(file).get(name, path) if file.exists() else path


def api_index(pages: Mapping[str, str], public: Mapping[str, str]) -> str:
    """Every public name with the first line of its docstring."""
    place = {path: room for room, text in pages.items() for path, _ in CODE.findall(text)}
    text = ["# API", "Every public name of `import lens_skills as ls`. What a room hands out beside"
            " them stands on the room's page.", "| name | what it is |\n|---|---|"]  # fmt: skip
    for name, module in public.items():
        room = module.split(".")[1]
        path = defined_at(name, module)
        first = first_line(path)
        target = f"[`ls.{name}`][{path}]" if path in place else f"[`ls.{name}`]({room}.md)"
        text[-1] += f"\n| {target} | {first} |"
    return "\n\n".join(text) + "\n"


def first_line(path: str) -> str:
    """The first line of the docstring of a function, class or module."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        file = ROOT.joinpath(*parts[:cut])
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if file.exists():
            node: Any = ast.parse(file.read_text(encoding="utf-8"))
            for name in parts[cut:]:
                node = next(child for child in node.body if getattr(child, "name", "") == name)
            return (ast.get_docstring(node) or "").partition("\n")[0].replace("|", "\\|")
    raise LookupError(path)


def functions(file: Path, prefix: str) -> list[str]:
    """The public functions of a file: those it hands on, else those it defines."""
    names = exported(file)
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    defined = [
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    paths = {name: f"{module}.{name}" for name in defined} or names
    return [documented(f"{prefix}.{name}", path) for name, path in paths.items()]


class Docstrings(griffe.Extension):
    """Docstrings as Markdown: examples in code blocks, names and arXiv numbers as links."""

    def __init__(self) -> None:
        self.documented = dict(CODE.findall("\n".join(api_pages().values())))
        names = {heading.rpartition(".")[2]: path for path, heading in self.documented.items()}
        self.names = names

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            parts = DOCTEST.split(obj.docstring.value)
            parts[::2] = [self.linked(part, obj.name) for part in parts[::2]]
            parts[1::2] = [example(part) for part in parts[1::2]]
            obj.docstring.value = "".join(parts)

    def linked(self, text: str, own: str) -> str:
        """The text with its headings set off, and what can be looked up as links."""

        def name(found: re.Match[str]) -> str:
            path = self.names.get(found[1].removeprefix("ls."))
            return f"[{found[0]}][{path}]" if path and found[1] != own else found[0]

        text = re.sub(r"(?<!`)`([\w.]+)`(?!`)", name, text)
        text = re.sub(r"^( *)(Source|Assumes|Does not show):", r"\1**\2:**", text, flags=re.M)
        return re.sub(r"(?:arXiv )?\b(\d{4}\.\d{5})\b", r"[\g<0>](https://arxiv.org/abs/\1)", text)


def example(text: str) -> str:
    """A doctest as a code block, at its own indentation."""
    margin = re.match(r"\n* *", text)[0].rpartition("\n")[2]  # type: ignore[index]
    body = text.strip("\n")
    return f"\n{margin}```pycon\n{body}\n{margin}```\n"


def lead(file: Path) -> str:
    """The first paragraph of a file's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]


def documented(heading: str, path: str) -> str:
    """What mkdocstrings replaces by the documentation of one name."""
    return f"::: {path}\n    options:\n      heading: {heading}\n      toc_label: {heading}\n"
