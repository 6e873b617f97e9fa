"""Every kind of file that is written says its format; one of a later number is refused, or kept."""

import ast
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.cli.as_json import envelope
from lens_skills.cli.runs import Run, RunRequest
from lens_skills.errors import LensSkillsError
from lens_skills.generation import endpoint
from lens_skills.models import gguf_cache, parity
from lens_skills.plotting import figures
from lens_skills.publishing import NeuronSet, set_format
from lens_skills.results import read_asked, write_asked
from lens_skills.scoring import Selection
from tests.folder_damage import stopped
from tests.local_server import Server
from tests.test_saved import Maker

ROOT = Path(__file__).resolve().parents[1]


def result(folder: Path) -> Path:
    return Maker(0).fields(Selection).save(folder / "result")


def run(folder: Path) -> Path:
    return Run.create(folder / "run", RunRequest("agreement", ("label:plural",))).folder


def checkpoint(folder: Path) -> Path:
    stopped(folder / "work")
    return folder / "work"


def goes_on(folder: Path) -> None:
    from lens_skills.checkpoints import working

    with working(folder, {"verb": "score"}):
        pass


def table(folder: Path) -> Path:
    model = ls.load_model("arithmetic-small")
    ls.capture(model, ls.tasks.arithmetic()[:4], folder / "table", layers=0)
    return folder / "table"


def neuron_set(folder: Path) -> Path:
    document = {"format": set_format.FORMAT, "version": set_format.VERSION}
    return set_format.write(folder / "set", document, {"x": torch.zeros(1)})


def figure(folder: Path) -> Path:
    figures.attrition({"neurons": 9, "confirmed": 4}).save(folder)
    return folder / "attrition"


def step(folder: Path) -> Path:
    write_asked(folder / "made", {"--limit": 3})
    return folder / "made"


Kind = tuple[Callable[[Path], Path], str, str, Callable[[Path], Any]]

REFUSED: dict[str, Kind] = {
    "`result.json`": (result, "result.json", "format", ls.load),
    "`run.json`": (run, "run.json", "format", Run.load),
    "`asked.json`": (checkpoint, "asked.json", "format", goes_on),
    "`manifest.json`": (table, "manifest.json", "format", ls.load),
    "`neurons.json`": (neuron_set, "neurons.json", "version", NeuronSet.load),
    "a figure's `.json`": (figure, "attrition.json", "format", figures.redraw),
    "`.NAME-asked.json`": (step, ".made-asked.json", "format", read_asked),
}
"""By its row in the page: what writes it, its file, the field of the number, what opens it."""

WRITERS = {
    "results.py": {"`result.json`", "`.NAME-asked.json`"},
    "cli/runs.py": {"`run.json`", "tables (CSV)"},
    "checkpoints.py": {"`asked.json`"},
    "activations/capture.py": {"`manifest.json`"},
    "publishing/set_format.py": {"`neurons.json`"},
    "publishing/set_exports.py": {"exports"},
    "publishing/set_hub.py": {"exports"},  # the page of a repository
    "plotting/drawing.py": {"a figure's `.json`"},
    "generation/endpoint.py": {"answers in `cache=`"},
    "models/gguf_cache.py": {"converted models"},
    "models/parity.py": {"`parity/…json`"},
    "models/dictionaries.py": {"`cfg.json`"},
    "reporting/written_report.py": {"a report's page"},
    "reporting/neuronpedia.py": {"exports"},
    "reporting/exported.py": {"tables (CSV)"},
    "cli/console.py": {"tables (CSV)"},
    "cli/soft_prompts.py": {"tables (CSV)"},
}
"""The modules that write files, and what: by the rows of the page."""


def rows() -> dict[str, str]:
    """The kinds of files in the page on long runs, and their numbers."""
    text = (ROOT / "docs" / "howto" / "long_runs.md").read_text(encoding="utf-8")
    lines = text.partition("| file | written by | format |")[2].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip(): row[2] for row in cells}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_of_a_later_format_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    make, name, key, opened = REFUSED[kind]
    place = make(tmp_path)
    path = (place if place.is_dir() else tmp_path) / name
    plain = json.loads(path.read_text())
    assert rows()[kind] == str(plain[key])
    path.write_text(json.dumps(plain | {key: plain[key] + 1}))
    with pytest.raises(LensSkillsError, match=r"[Uu]pdate |Go on with lens-skills ") as refused:
        opened(place)
    assert f"{plain[key] + 1}" in str(refused.value)
    assert "damaged" not in str(refused.value)
    path.write_text(json.dumps(plain))
    if kind != "`neurons.json`":  # which was none, beside its version
        opened(place)


def test_answers_of_a_later_format_are_asked_for_anew_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = import_module("lens_skills.generation.endpoint")  # not the verb
    server = Server("yes")
    try:
        now = module.CACHE_FORMAT
        monkeypatch.setattr(module, "CACHE_FORMAT", now + 1)
        for _ in range(2):
            endpoint(server.url, model="m", cache=tmp_path).answer([], str, "again")
        (later,) = tmp_path.iterdir()
        whole = later.read_bytes()
        assert json.loads(whole)["format"] == now + 1
        monkeypatch.setattr(module, "CACHE_FORMAT", now)
        endpoint(server.url, model="m", cache=tmp_path).answer([], str, "again")
    finally:
        server.stop()
    assert len(server.seen) == 2
    assert later.read_bytes() == whole
    assert rows()["answers in `cache=`"] == str(now)


def test_what_a_later_version_converted_or_compared_is_not_taken(
    tiny_hf: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    entry, key = gguf_cache.entry_of(file), parity.key_of(tiny_hf[0], "bridge")
    assert rows()["converted models"] == str(gguf_cache.FORMAT)
    assert rows()["`parity/…json`"] == str(parity.FORMAT)
    monkeypatch.setattr(gguf_cache, "FORMAT", gguf_cache.FORMAT + 1)
    monkeypatch.setattr(parity, "FORMAT", parity.FORMAT + 1)
    assert gguf_cache.entry_of(file) != entry
    assert parity.key_of(tiny_hf[0], "bridge") != key


def test_what_other_programs_read_says_its_format_too(tmp_path: Path) -> None:
    found = ls.preflight(ls.load_model("arithmetic-small"), ls.tasks.arithmetic()[:20])
    page = ls.report(found, tmp_path / "page.html").read_text("utf-8")
    assert '"format":"lens-skills/report","version":1,' in page
    assert rows()["a report's page"] == rows()["`--json`"] == "1"
    said = json.loads(envelope("score", {}))
    assert (said["format"], said["version"]) == ("lens-skills/score", 1)


_CALLS = {
    "write_file", "write_folder", "save_file", "write_text", "write_bytes", "to_csv", "write_table",
    "to_parquet",
}  # fmt: skip


def written_by(path: Path) -> bool:
    """Whether a module writes files itself, by the calls that do."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            whole = ast.unparse(node.func)
            plain = name == "to_csv" and not node.args  # a text, which something else writes
            if (name in _CALLS and not plain) or whole in ("np.save", "torch.save"):
                return True
            mode = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if name == "open" and {"w", "wb", "a", "x"} & {*map(str, mode)}:
                return True
    return False


def test_every_module_that_writes_is_known_and_so_is_every_row() -> None:
    home = Path(ls.__file__).parent
    # Words of a circuit's picture, and rows of a table, which `capture` writes.
    apart = {"plotting/circuit_plots.py", "generation/generate.py", "plotting/figure_table.py"}
    found = {p.relative_to(home).as_posix() for p in home.rglob("*.py") if written_by(p)}
    assert found - apart == set(WRITERS)
    assert set(rows()) == set().union(*WRITERS.values()) | {"`--json`"}
    assert set(REFUSED) <= set(rows())


def test_the_writers_are_found(tmp_path: Path) -> None:
    for line, writes in (
        ("np.save(p, x)", True), ("p.write_text('')", True), ("open(p, 'wb')", True),
        ("frame.to_csv(p)", True), ("text = frame.to_csv(index=False)", False),
        ("open(p)", False), ("p.read_text()", False),
    ):  # fmt: skip
        (tmp_path / "a.py").write_text(line)
        assert written_by(tmp_path / "a.py") is writes, line
