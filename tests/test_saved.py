"""Every result comes back from its folder as it was, and what is no result is said to be none."""

import inspect
import itertools
import json
import math
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.results import FORMAT, Result, write_folder
from lens_skills.saved import KINDS, load
from lens_skills.scoring import Selection
from lens_skills.tasks import Task
from tests.folder_damage import stopped


def result_classes() -> list[type[Result]]:
    """Every class of the package that is a result."""
    for module in pkgutil.walk_packages(ls.__path__, "lens_skills."):
        import_module(module.name)
    found = [kind for kind in Result.__subclasses__() if kind.__module__.startswith("lens_skills.")]
    return sorted(found, key=lambda kind: kind.__name__)


class Maker:
    """Makes a value of any type that a result holds."""

    def __init__(self, size: int, *, absent: bool = False) -> None:
        self.size, self.absent = size, absent
        self.count = itertools.count()

    def of(self, hint: Any) -> Any:
        kind, parts = get_origin(hint), get_args(hint)
        if kind in (Union, UnionType):
            if self.absent and type(None) in parts:
                return None
            return self.of(next(part for part in parts if part is not type(None)))
        if kind is Literal:
            return parts[0]
        if kind is tuple and parts[-1] is not Ellipsis:
            return tuple(self.of(part) for part in parts)
        if kind in (tuple, list, Sequence):
            return (list if kind is list else tuple)(self.of(parts[0]) for _ in range(self.size))
        if kind in (dict, Mapping):
            names = ("label:a/b", "é", "third")[: self.size]
            return {name: self.of(parts[1]) for name in names}
        if hasattr(hint, "dim_str"):
            return self.tensor(hint)
        made = {str: "text", int: 3, float: 0.1, bool: True, Tensor: torch.arange(3.0).double()}
        if hint in made:
            return f"text {next(self.count)}" if hint is str else made[hint]
        if hint is pd.DataFrame:
            return self.table()
        if hint is Any:
            return {"list": [1, 0.5, None, "é"], "deep": {"nan": math.nan}}
        if hint is Example:
            number = f"{next(self.count)}"
            covariates = {"a": 1, "b": 0.5, "c": "é", "d": True}
            return Example(number, "prompt", " a", options=(" a", " b"), covariates=covariates)
        if hint is Task:
            return Task("task", [self.of(Example), self.of(Example)], "first split")
        assert is_dataclass(hint), hint
        return self.fields(hint)

    def fields(self, kind: Any) -> Any:
        hints = get_type_hints(kind)
        return kind(**{item.name: self.of(hints[item.name]) for item in fields(kind)})

    def tensor(self, hint: Any) -> Tensor:
        shape = [int(name) if name.isdigit() else self.size for name in hint.dim_str.split()]
        whole = torch.arange(float(math.prod(shape))).double().reshape(shape) / 3
        if "bool" in hint.dtypes:
            return whole > 0.5
        return whole.long() if "int64" in hint.dtypes else whole

    def table(self) -> pd.DataFrame:
        columns = {
            "name": ["é", "b"],
            "n": [1, 2],
            "value": [math.nan, 0.1],
            "known": [True, False],
            "maybe": np.array([None, "x"], dtype=object),
        }
        return pd.DataFrame(columns)[: self.size]


def assert_same(one: Any, other: Any, place: str) -> None:
    assert type(one) is type(other), f"{place}: {one!r} has become {other!r}"
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, place
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif is_dataclass(one):
        for item in fields(one):
            before, after = getattr(one, item.name), getattr(other, item.name)
            assert_same(before, after, f"{place}.{item.name}")
    elif isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            assert_same(one[key], other[key], f"{place}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, (before, after) in enumerate(zip(one, other, strict=True)):
            assert_same(before, after, f"{place}[{number}]")
    else:
        assert one == other or (one != one and other != other), place


@pytest.mark.parametrize("kind", result_classes(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("maker", ["full", "absent", "empty"])
def test_every_result_comes_back_as_it_was(
    kind: type[Result], maker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "readable_files", lambda self: {})  # made-up numbers make no card
    made = Maker(0 if maker == "empty" else 2, absent=maker == "absent").fields(kind)
    folder = made.save(tmp_path / "new" / "result")
    again = load(folder)
    assert_same(made, again, kind.__name__)
    assert_same(made, kind.load(folder), kind.__name__)
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "result.safetensors"]
    assert made.save(folder) == folder  # the same place again
    assert [path.name for path in folder.parent.iterdir()] == ["result"]


def test_load_knows_every_kind_by_its_room() -> None:
    classes = {kind.__name__: kind for kind in result_classes()}
    assert set(KINDS) == set(classes)
    for name, room in KINDS.items():
        assert getattr(import_module(f"lens_skills.{room}"), name) is classes[name]


# What a verb may hand back that is not measured: it is written down, or has a file of its own, or
# holds for this machine and this hour.
NO_RESULTS = {
    "ActivationTable", "Controls", "Count", "Dictionary", "Edit", "Endpoint", "Estimate",
    "FeatureBank", "Metric", "Span", "Task",
}  # fmt: skip


def dataclasses_in(hint: Any) -> Iterator[type]:
    if is_dataclass(hint):
        yield hint  # type: ignore[misc]
    for part in get_args(hint):
        yield from dataclasses_in(part)


def test_whatever_a_public_verb_hands_back_can_be_saved() -> None:
    for name in ls.__all__:
        verb = getattr(ls, name)
        if inspect.isfunction(verb):
            for kind in dataclasses_in(get_type_hints(verb).get("return")):
                saved = issubclass(kind, Result) or kind.__name__ in NO_RESULTS
                assert saved, f"{name} hands back a {kind.__name__}, which is no Result"


@dataclass(frozen=True)
class Bar:
    """Part of a result of this test."""

    value: float
    other: float | None


@dataclass(frozen=True, eq=False)
class Selected(Result):
    """A result of this test."""

    name: str
    table: pd.DataFrame
    same: pd.DataFrame
    whole: Tensor
    part: Tensor
    bars: dict[str, Bar]
    card: bool = False

    def readable_files(self) -> dict[str, str]:
        return {"card.txt": f"{self.name}\n"} if self.card else {}


def selected(**changed: Any) -> Selected:
    table, whole = pd.DataFrame({"x": [1]}, index=[7]), torch.arange(6.0)
    values: dict[str, Any] = {"name": "a", "table": table, "same": table, "whole": whole}
    values |= {"part": whole[2:4], "bars": {"y": Bar(0.5, None)}}
    return Selected(**values | changed)


def test_views_of_one_tensor_and_a_table_used_twice_come_back(tmp_path: Path) -> None:
    made = selected()
    again = Selected.load(made.save(tmp_path / "result"))
    assert_same(made, again, "Selected")
    assert again.table is again.same


def test_what_people_read_lies_beside_and_is_replaced_with_it(tmp_path: Path) -> None:
    folder = selected(card=True).save(tmp_path / "result")
    assert (folder / "card.txt").read_text() == "a\n"
    selected(name="b", card=True).save(folder)
    assert (folder / "card.txt").read_text() == "b\n"
    selected().save(folder)
    assert not (folder / "card.txt").exists()


def test_saving_loses_nothing_else(tmp_path: Path) -> None:
    folder = selected().save(tmp_path / "result")
    other = Maker(2).fields(Selection)
    with pytest.raises(LensSkillsError, match="holds a saved Selected, which saving a Selection"):
        other.save(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(LensSkillsError, match=r"'notes\.txt' beside the saved Selected"):
        selected().save(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(LensSkillsError, match="exists and holds no saved Selected"):
        selected().save(tmp_path)


def test_load_says_what_is_there_instead(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match=r"no saved result in .*: there is no such"):
        load(tmp_path / "none")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(LensSkillsError, match="it is a file"):
        load(tmp_path / "a.txt")
    with pytest.raises(LensSkillsError, match=r"no saved result in .*: it holds a\.txt\."):
        load(tmp_path)
    selected().save(tmp_path / "inside")
    with pytest.raises(LensSkillsError, match=r"it holds the results inside\. Open one: "):
        load(tmp_path)
    with pytest.raises(LensSkillsError, match=r"a saved Selected, which this version .* not know"):
        load(tmp_path / "inside")
    with pytest.raises(LensSkillsError, match="holds a saved Selected, no Selection"):
        Selection.load(tmp_path / "inside")


def test_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = Maker(2).fields(Selection).save(tmp_path / "result")
    file = folder / "result.json"
    plain = json.loads(file.read_text())
    assert (plain["kind"], plain["format"]) == ("Selection", FORMAT)
    for number, advice in ((FORMAT + 1, "Update it"), (FORMAT - 1, "Run the command that made")):
        file.write_text(json.dumps(plain | {"format": number}))
        with pytest.raises(LensSkillsError, match=f"format {number}; .* reads {FORMAT}. {advice}"):
            load(folder)


def test_an_older_layout_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_folder(tmp_path / "old", "scores", {"r": torch.zeros(2)}, {"metrics": ["a"]})
    with pytest.raises(LensSkillsError, match=r"scores.json was saved by an older .* Run the"):
        load(tmp_path / "old")
    stopped(tmp_path / "stopped")
    with pytest.raises(LensSkillsError, match="it holds work that was interrupted"):
        load(tmp_path / "stopped")


@pytest.mark.parametrize(
    ("field", "value"), [("unheard", 3), ("neurons", {"$tensor": "gone"})], ids=["more", "less"]
)
def test_a_damaged_result_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    folder = Maker(2).fields(Selection).save(tmp_path / "result")
    file = folder / "result.json"
    plain = json.loads(file.read_text())
    plain["values"][field] = value
    file.write_text(json.dumps(plain))
    with pytest.raises(LensSkillsError, match="is damaged, or was saved by another version"):
        load(folder)
    file.write_text("{")
    with pytest.raises(LensSkillsError, match="is damaged"):
        load(folder)
    file.write_text(json.dumps(plain))
    (folder / "result.safetensors").write_bytes(b"x")
    with pytest.raises(LensSkillsError, match="is damaged"):
        load(folder)


def test_a_run_of_the_shell_is_opened_as_its_results(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(LensSkillsError, match="holds no result yet"):
        load(tmp_path)
    write_folder(tmp_path / "explore", "scores", {}, {})
    with pytest.raises(LensSkillsError, match="older version"):
        load(tmp_path)
    (tmp_path / "figures").mkdir()
    Maker(2).fields(Selection).save(tmp_path / "selection-a")
    assert list(load(tmp_path)) == ["selection-a"]


def test_a_table_of_activations_is_opened(tiny: Any, tmp_path: Path) -> None:
    examples = [Example(word, f"The {word}") for word in ("key", "keys")]
    table = ls.capture(tiny, examples, tmp_path / "table")
    again = ls.load(tmp_path / "table")
    assert (type(again), again.layers) == (type(table), table.layers)
