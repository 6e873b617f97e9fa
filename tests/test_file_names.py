"""Names that lead out of a folder, or that no system has, are refused or made harmless."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.cli.runs import Run, RunRequest
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.file_names import LONGEST, inside, is_file_name
from lens_skills.plotting import figures
from lens_skills.publishing import NeuronSet, set_format
from lens_skills.results import FORMAT, Result, file_name, write_file
from lens_skills.scoring import Selection
from tests.folder_damage import stopped
from tests.test_saved import Maker

BAD = [
    "../x", "/etc/x", "a\\..\\b", "C:\\x", "C:x", "NUL", "com1.npy", "a/../../x", "a\0b", "",
    "nul:", "nul .txt", "CONOUT$", "a/com¹/b.npy", "//server/x", "./../x",
]  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of four rows of made-up activations."""
    import numpy as np

    folder = tmp_path / "table"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones((4, 1, 2, 3), "float32"))
    rows = "".join(json.dumps({"id": str(k), "label:y": k % 2}) + "\n" for k in range(4))
    (folder / "a.jsonl").write_text(rows)
    manifest = {
        "format": 2, "model": "m", "site": "mlp.hook_post", "layers": [0, 1], "positions": ["last"],
        "width": 3, "dtype": "float32",
        "shards": [{"file": "a.npy", "rows": 4, "table": "a.jsonl"}],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert len(ls.load(folder).examples) == 4
    return folder


def change(folder: Path, **shard: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= shard
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("what", ["file", "table"])
def test_a_manifest_names_files_in_its_folder_alone(table: Path, name: str, what: str) -> None:
    change(table, **{what: name})
    with pytest.raises(LensSkillsError, match="only files inside the folder are read"):
        ls.load(table)


def test_a_link_out_of_a_table_is_refused_and_a_hubs_store_is_not(
    table: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.npy"
    (table / "a.npy").rename(elsewhere)
    (table / "a.npy").symlink_to(elsewhere)
    with pytest.raises(LensSkillsError, match=r"is a link to .*elsewhere.npy, outside of"):
        ls.load(table)
    # A hub's downloads: every file a link into one store beside.
    store = tmp_path / "store"
    store.mkdir()
    elsewhere.rename(store / "1")
    for number, name in enumerate(("a.jsonl", "manifest.json"), 2):
        (table / name).rename(store / str(number))
        (table / name).symlink_to(store / str(number))
    (table / "a.npy").unlink()
    (table / "a.npy").symlink_to(store / "1")
    assert len(ls.load(table).examples) == 4


# Letters that look like dots and separators.
LIKE = ["\uff0e\uff0e/x", "a\u2215b", "..\u2215x", "\u2024\u2024", "a\u29f5b"]


@pytest.mark.parametrize("name", LIKE)
def test_letters_that_look_like_separators_are_letters(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name, "a shard", "m.json") == tmp_path / name
    assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve())


NOWHERE = [
    "../x",
    "/etc/x",
    "a\\..\\b",
    "C:\\x",
    "NUL",
    "a\0b",
    "x" * 300,
    "a/" * 3000,
    "\ud800",
    *LIKE,
]


@pytest.mark.parametrize("name", NOWHERE, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize(
    "opened",
    [
        ls.load, Run.load, NeuronSet.load, Selection.load, ls.load_dictionary, figures.redraw,
        ls.load_model, ls.tasks.bigbench, lambda place: ls.load([place, place]),
        lambda place: ls.report(place, "page.html"), lambda place: NeuronSet.load(f"hub:{place}"),
        lambda place: ls.tasks.table(place, prompt="{a}", answer="b"),
    ],
)  # fmt: skip
def test_whatever_is_no_place_is_refused_in_words(
    opened: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LensSkillsError):
        opened(name)
    assert [*tmp_path.iterdir()] == []


def dictionary(place: Path) -> Path:
    return ls.Dictionary(torch.eye(3), torch.eye(3), "blocks.0.hook_resid_post").save(place)


def set_of_neurons(place: Path) -> Path:
    document = {"format": set_format.FORMAT, "version": set_format.VERSION}
    return set_format.write(place, document, {"x": torch.zeros(1)})


FOLDERS = {
    "result.safetensors": (lambda at: saved_result().save(at), ls.load),
    "sae_weights.safetensors": (dictionary, ls.load_dictionary),
    "neurons.safetensors": (set_of_neurons, NeuronSet.load),
    "done-000001": (lambda at: stopped(at) or at, stopped),
    "done-000001/parts.safetensors": (lambda at: stopped(at) or at, stopped),
    "state-sums_1.1": (lambda at: stopped(at) or at, stopped),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_out_of_any_folder_is_refused_and_what_it_leads_to_stays(
    name: str, tmp_path: Path
) -> None:
    make, opened = FOLDERS[name]
    folder = make(tmp_path / "folder")
    other = tmp_path / "other"
    (folder / name).rename(other)
    (folder / name).symlink_to(other)
    with pytest.raises(LensSkillsError, match=r"is a link to .*other|damaged: .* was cut short"):
        opened(folder)
    assert other.exists()
    (folder / name).unlink()
    other.rename(folder / name)
    (tmp_path / "link").symlink_to(folder)  # the folder as a whole may be one
    if name != "neurons.safetensors":
        opened(tmp_path / "link")


def test_a_link_out_of_a_run_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    run = Run.create(tmp_path / "run", RunRequest("agreement", ("label:plural",)))
    (run.folder / "figures").mkdir()
    (run.folder / "figures" / "inside").symlink_to(run.folder / "figures")
    assert Run.load(run.folder).request == run.request
    (run.folder / "explore").symlink_to(other)
    saved_result().save(other / "result")
    for opened in (Run.load, ls.load):
        (run.folder / "explore").unlink()
        (run.folder / "explore").symlink_to(other / "result")
        with pytest.raises(LensSkillsError, match=r"is a link to .*other.*, outside of .*run"):
            opened(run.folder)
    (tmp_path / "link").symlink_to(run.folder)
    (run.folder / "explore").unlink()
    assert Run.load(tmp_path / "link").request == run.request  # the folder as a whole may be one


def test_a_run_of_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunRequest("agreement", ("label:plural",)))
    path = run.folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(
        LensSkillsError, match=f"has format {FORMAT + 1}; .* reads {FORMAT}. Update lens-skills"
    ):
        Run.load(run.folder)


def test_a_table_of_a_newer_format_asks_for_an_update(table: Path) -> None:
    manifest = json.loads((table / "manifest.json").read_text())
    for number, advice in ((3, "Update lens-skills"), (1, "Write it anew"), ("2", "Write it anew")):
        (table / "manifest.json").write_text(json.dumps(manifest | {"format": number}))
        with pytest.raises(LensSkillsError, match=f"has format .*reads 2. {advice}"):
            ls.load(table)


def saved_result() -> Result:
    return Maker(0).fields(Selection)


def test_results_are_saved_where_a_link_points_and_the_link_stays(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk" / "result", tmp_path / "link"
    for _ in range(2):  # made, and then replaced
        saved_result().save(disk)
        if not link.exists():
            link.symlink_to(disk)
        saved_result().save(link)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in disk.parent.iterdir()] == ["result"]
    file = tmp_path / "page.html"
    file.symlink_to(disk.parent / "page.html")
    write_file(file, b"x")
    assert file.is_symlink()
    assert (disk.parent / "page.html").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["a\0b", "n" * 300])
def test_a_name_that_no_disk_takes_is_refused_in_words(
    tmp_path: Path, name: str, tiny: Any
) -> None:
    task = [Example(id=str(k), prompt="a b", answer=" c") for k in range(4)]
    place, kept = tmp_path / name, saved_result()
    for write in (
        kept.save,
        lambda at: ls.report(kept, f"{at}.html"),
        lambda at: ls.export({"kept": kept}, at),
        lambda at: ls.capture(tiny, task, at),
        lambda at: ls.score(tiny, task, metrics=["entropy"], n_permutations=0, checkpoint=at),
    ):
        with pytest.raises(
            LensSkillsError, match=r"null character|has 30. bytes|cannot be written"
        ):
            write(place)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\\b", "NUL", "com1", "a\0b", "n" * 400, "x."])
def test_names_of_results_become_names_of_files(tmp_path: Path, name: str) -> None:
    ls.export({name: saved_result()}, tmp_path / "paper")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in written} == {tmp_path / "paper" / "tables"}
    assert len(written) == 2
    assert all(is_file_name(path.name) for path in written)


def test_names_of_metrics_become_names_of_files(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunRequest("agreement", ("label:plural",)))
    for metric in (
        "label:../../x",
        "label:a/b",
        "label:a\\b",
        "x" * 5000,
        "\0",
        "label:" + "ä" * 90,
    ):
        path = run.path("verdict", metric)
        assert path.parent == run.folder
        assert is_file_name(path.name)
    first, second = (file_name("x" * 300 + end) for end in "ab")
    assert first != second  # cut, and still two


def test_no_two_names_have_one_file(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunRequest("agreement", ("label:plural",)))
    names = ["a b", "a_b", "a  b", "a.b", "a/b", "label:a b", "label:a_b", "label:a=b", "label:a:b",
             "label:op=+", "label:op=*", "label:op=_", "covariate:a_b", "entropy:options",
             "L0N1", "L0N1+L1N2", "L0N1 L1N2"]  # fmt: skip
    paths = {run.path("selection", name).name for name in names}
    assert len(paths) == len(names)
    assert run.path("selection", "label:plural").name == "selection-label_plural"
    assert run.path("dose", "L0N1+L1N2").name == "dose-L0N1_L1N2"


def test_two_metrics_of_one_file_are_refused_before_work_begins(tmp_path: Path) -> None:
    asked = RunRequest("agreement", ("label:plural", "entropy", "label_plural"))
    with pytest.raises(LensSkillsError, match="'label:plural' and 'label_plural' would have the"):
        Run.create(tmp_path / "run", asked)
    assert not (tmp_path / "run").exists()
    Run.create(tmp_path / "run", RunRequest("agreement", ("entropy", "entropy", "label:plural")))


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a\\b", "nul", "a/b", ""])
def test_a_figure_is_not_redrawn_under_a_name_that_is_a_path(tmp_path: Path, name: str) -> None:
    import pandas as pd

    from lens_skills.plotting.drawing import DRAWN

    kind = next(iter(DRAWN))
    about = {
        "kind": kind, "format": 1, "name": name, "style": "paper", "width_mm": 80, "panel": "",
        "columns": {}, "about": {},
    }  # fmt: skip
    (tmp_path / "figure.json").write_text(json.dumps(about))
    pd.DataFrame().to_csv(tmp_path / "figure.csv")
    with pytest.raises(LensSkillsError, match=r"which is no file's name"):
        figures.redraw(tmp_path / "figure")


def test_a_figure_of_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    about = {
        "kind": "attrition", "format": 99, "name": "a", "style": "paper", "width_mm": 80,
        "panel": "", "columns": {}, "about": {},
    }  # fmt: skip
    (tmp_path / "figure.json").write_text(json.dumps(about))
    (tmp_path / "figure.csv").write_text("")
    with pytest.raises(LensSkillsError, match=r"of format 99.* Update lens-skills"):
        figures.redraw(tmp_path / "figure")


def test_what_a_file_name_is() -> None:
    assert is_file_name("n" * LONGEST)
    assert not is_file_name("ä" * LONGEST)
    assert not is_file_name(None)
    assert os.sep not in file_name("a/b")
