"""Activations that another program wrote: any of the formats is read alike, and what is wrong is
named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import save_file

from lens_skills.activations import ActivationTable
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import explain
from lens_skills.ranking import rank
from lens_skills.saved import load
from lens_skills.scoring import score
from lens_skills.settings import config

N, LAYERS, WIDTH = 90, [0, 2], 6
ABOUT = {"n_permutations": 19, "n_controls": 0, "seed": 1}


def numbers(n_positions: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, n_positions, len(LAYERS), WIDTH, generator=generator)


def columns() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "id": [f"row {n}" for n in range(N)],
        "group": [f"g{n // 3}" for n in range(N)],
        "prompt": [f'It is "{n}",\nor not' for n in range(N)],
        "label:even": (np.arange(N) % 2).tolist(),
        "label:rule": ["abc"[n % 3] for n in range(N)],
        "covariate:size": random.normal(size=N).tolist(),
        "correct": (np.arange(N) % 5 == 0).astype(int).tolist(),
        "tone": random.normal(size=N).tolist(),
    }


def write(
    folder: Path,
    acts: torch.Tensor,
    rows: dict[str, Any],
    *,
    kind: str = "safetensors",
    table: str = "jsonl",
    per_layer: bool = False,
    sizes: tuple[int, ...] = (50, 1, 39),
    dtype: torch.dtype = torch.float32,
    **about: Any,
) -> Path:
    """Shards as another program might write them."""
    folder.mkdir(parents=True)
    shards, start = [], 0
    acts = acts.to(dtype)
    for number, size in enumerate(sizes):
        part = acts[start : start + size].contiguous()
        own = {name: values[start : start + size] for name, values in rows.items()}
        start += size
        name = f"shard-{number}.{kind}"
        entry = {"file": name, "rows": size, "table": f"rows-{number}.{table}"}
        arrays = {"activations": part if part.shape[1] > 1 else part[:, 0]}
        if per_layer:
            arrays = {f"layer.{at}": part[:, :, k].contiguous() for k, at in enumerate(LAYERS)}
        if kind == "safetensors":
            save_file(arrays, folder / name)
        elif kind == "npy":
            np.save(folder / name, arrays["activations"].numpy())
        else:
            lists = {
                key: pyarrow.FixedSizeListArray.from_arrays(
                    pyarrow.array(array.flatten().numpy()), array[0].numel()
                )
                for key, array in arrays.items()
            }
            parquet.write_table(pyarrow.table(own | lists), folder / name, row_group_size=20)
            del entry["table"]
        if "table" in entry:
            write_rows(folder / entry["table"], own)
        shards.append(entry)
    manifest = {
        "format": 2, "model": "theirs", "site": "mlp.hook_post", "layers": LAYERS,
        "positions": ["last", "3"][: acts.shape[1]], "width": acts.shape[-1],
        "dtype": str(dtype).removeprefix("torch."), "shards": shards,
    } | about  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_rows(path: Path, own: dict[str, Any]) -> None:
    if path.suffix == ".jsonl":
        rows = [dict(zip(own, row, strict=True)) for row in zip(*own.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(pyarrow.table(own), path)
    else:
        parquet.write_table(pyarrow.table(own), path)


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


FORMS: list[dict[str, Any]] = [
    {},
    {"table": "csv"},
    {"table": "parquet", "dtype": torch.float16},
    {"per_layer": True, "dtype": torch.bfloat16},
    {"kind": "npy", "table": "csv"},
    {"kind": "npy", "dtype": torch.float64},
    {"kind": "parquet"},
    {"kind": "parquet", "per_layer": True, "dtype": torch.float16},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_positions", [1, 2])
def test_every_format_is_read_alike(tmp_path: Path, form: dict[str, Any], n_positions: int) -> None:
    acts = numbers(n_positions)
    table = load(write(tmp_path / "t", acts, columns(), **form))
    stored = acts.to(form.get("dtype", torch.float32))
    shape = stored if n_positions > 1 else stored[:, 0]
    assert table.activations().equal(shape)
    want = columns()
    for place, example in enumerate(table.examples):
        assert (example.id, example.prompt) == (f"row {place}", want["prompt"][place])
        assert example.group == example.kind == want["group"][place]
        assert dict(example.labels) == {k: want[f"label:{k}"][place] for k in ("even", "rule")}
        assert example.covariates["size"] == pytest.approx(want["covariate:size"][place])
    assert list(table.metrics) == ["correct", "tone"]
    np.testing.assert_allclose(table.metrics["tone"], want["tone"])
    # Part of the rows, in any order, over the borders of the shards.
    some = [table.examples[place] for place in (88, 3, 49, 50, 51, 4, 0)]
    with config(batch_size=3):
        for batch in table.stream(some, metrics=["tone", "label:even"]):
            for row, index in enumerate(batch.index.tolist()):
                place = int(some[index].id.removeprefix("row "))
                want_row = shape[place].to(batch.activations.dtype)
                assert batch.activations[row].equal(want_row)
                assert float(batch.metrics["tone"][row]) == pytest.approx(want["tone"][place])
                assert float(batch.metrics["label:even"][row]) == place % 2


def test_scores_and_ranks_do_not_depend_on_the_format(tmp_path: Path) -> None:
    acts, names = numbers(), ["label:even", "correct", "tone", "label:rule", "covariate:size"]
    first = None
    for number, form in enumerate([{}, {"kind": "npy", "sizes": (90,)}, {"kind": "parquet"}]):
        table = load(write(tmp_path / str(number), acts, columns(), **form))
        found = score(table, table.examples, metrics=names, **ABOUT)
        by = rank(table, table.examples, "tone")
        assert found.provenance["exchange"]["tone"] == "signs"
        x = acts[:, 0].flatten(1).double().T
        want = torch.corrcoef(torch.cat([x, torch.tensor(columns()["tone"])[None]]).double())
        torch.testing.assert_close(found["tone"].r[0], want[-1, :-1], rtol=0, atol=1e-6)
        torch.testing.assert_close(by.score, want[-1, :-1], rtol=0, atol=1e-6)
        first = first or found
        torch.testing.assert_close(found.r, first.r, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.p, first.p, rtol=0, atol=0)


def test_columns_may_stand_in_safetensors(tmp_path: Path) -> None:
    folder, acts = tmp_path / "t", numbers()
    write(folder, acts, columns())
    start = 0
    for number, size in enumerate((50, 1, 39)):
        here = slice(start, start + size)
        start += size
        own = {
            "id": torch.arange(N)[here],
            "label:even": torch.arange(N)[here] % 2,
            "tone": torch.tensor(columns()["tone"])[here],
        }
        arrays = {"activations": acts[here, 0].contiguous(), **own}
        save_file(arrays, folder / f"shard-{number}.safetensors")
        (folder / f"rows-{number}.jsonl").unlink()
    change(folder, lambda about: [entry.pop("table") for entry in about["shards"]])
    table = load(folder)
    assert [one.id for one in table.examples] == [str(n) for n in range(N)]
    assert table.examples[3].prompt == ""
    assert not table.examples.has_text
    assert score(table, table.examples, metrics=["label:even", "tone"], **ABOUT).n_examples == N


def test_several_folders_are_one_table_where_they_fit(tmp_path: Path) -> None:
    acts, rows = numbers(), columns()
    whole = load(write(tmp_path / "whole", acts, rows))
    cut = {name: (values[:40], values[40:]) for name, values in rows.items()}
    for place, part in enumerate((acts[:40], acts[40:])):
        own = {name: values[place] for name, values in cut.items()}
        write(tmp_path / str(place), part, own, sizes=(len(part),))
    both = load([tmp_path / "0", tmp_path / "1"])
    asked = {"metrics": ["tone", "label:even"], **ABOUT}
    one, two = (score(table, table.examples, **asked) for table in (whole, both))
    torch.testing.assert_close(one.r, two.r, rtol=0, atol=1e-12)
    change(tmp_path / "1", lambda about: about.update(site="hook_resid_post"))
    with pytest.raises(LensSkillsError, match=r"do not fit .*: site is 'mlp\.hook_post' and"):
        load([tmp_path / "0", tmp_path / "1"])


def test_two_folders_with_the_same_rows_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, numbers(), columns())
    with pytest.raises(
        LensSkillsError, match=r"the id 'row 0' names two rows, in .*a.* and in .*b"
    ):
        load([tmp_path / "a", tmp_path / "b"])


def cut_file(folder: Path, name: str, keep: float = 0.6) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


Damage = Callable[[Path], Any]
DAMAGE: dict[str, tuple[dict[str, Any], Damage, str]] = {
    "a shard that is cut": (
        {},
        lambda at: cut_file(at, "shard-0.safetensors"),
        r"shard-0\.safetensors is cut or dam",
    ),
    "an array that is cut": (
        {"kind": "npy"},
        lambda at: cut_file(at, "shard-2.npy"),
        r"shard-2\.npy is cut: .* bytes",
    ),
    "a Parquet file that is cut": (
        {"kind": "parquet"},
        lambda at: cut_file(at, "shard-0.parquet"),
        r"shard-0\.parquet is cut",
    ),
    "a shard that is not there": (
        {},
        lambda at: (at / "shard-1.safetensors").unlink(),
        r"shard-1\.safetensors is not there",
    ),
    "rows that are not there": (
        {},
        lambda at: (at / "rows-1.jsonl").unlink(),
        r"table of rows .*rows-1\.jsonl .* (not the|cannot)",
    ),
    "another dtype": (
        {},
        lambda at: save_file({"activations": numbers()[:1, 0].half()}, at / "shard-1.safetensors"),
        r"shard-1\.safetensors does not fit .* float16, and the manifest says float32",
    ),
    "another width": (
        {},
        lambda at: save_file(
            {"activations": numbers()[:1, 0, :, 1:].contiguous()}, at / "shard-1.safetensors"
        ),
        r"shard-1\.safetensors does not fit .* is 1 × 2 × 5, and .* 6 wide",
    ),
    "a layer too few": (
        {"per_layer": True},
        lambda at: save_file(
            {"layer.0": numbers()[:1, 0, 0].contiguous()}, at / "shard-1.safetensors"
        ),
        r"shard-1\.safetensors lacks 'layer.2'",
    ),
    "other rows than said": (
        {},
        lambda at: change(at, lambda about: about["shards"][1].update(rows=2)),
        r"'activations' is 1 × 2 × 6, and the manifest says 2 rows",
    ),
    "another list size": (
        {"kind": "parquet"},
        lambda at: change(at, lambda about: about.update(width=7)),
        r"each row of 'activations' holds 12 numbers, .* 14",
    ),
    "a column too few": (
        {},
        lambda at: write_rows(
            at / "rows-2.jsonl", {k: v[51:] for k, v in columns().items() if k != "tone"}
        ),
        r"shard-2\.safetensors lacks the column 'tone', which shard-0\.safetensors has",
    ),
    "a column of another type": (
        {},
        lambda at: write_rows(
            at / "rows-2.jsonl",
            {k: v[51:] for k, v in columns().items()} | {"label:even": ["x"] * 39},
        ),
        r"'label:even' is int64 in shard-0\.safetensors and string in shard-2",
    ),
    "an id twice": (
        {},
        lambda at: write_rows(at / "rows-1.jsonl", {k: v[3:4] for k, v in columns().items()}),
        r"'row 3' names two rows, in shard-0\.safetensors and in shard-1",
    ),
    "no id": (
        {},
        lambda at: write_rows(
            at / "rows-1.jsonl", {k: v[50:51] for k, v in columns().items()} | {"id": [""]}
        ),
        r"shard-1\.safetensors: row 0 has no id",
    ),
    "no column of ids": (
        {},
        lambda at: write_rows(at / "rows-1.jsonl", {"tone": [1.0]}),
        r"have no column 'id'",
    ),
    "a row too few": (
        {},
        lambda at: write_rows(at / "rows-2.jsonl", {k: v[52:] for k, v in columns().items()}),
        r"shard-2\.safetensors has 38 rows of columns for 39",
    ),
    "a metric that is no number": (
        {},
        lambda at: write_rows(
            at / "rows-1.jsonl",
            {k: v[50:51] for k, v in columns().items()} | {"tone": [float("nan")]},
        ),
        r"'tone' of row 0 \(id 'row 50'\)",
    ),
    "a metric that is a text": (
        {},
        lambda at: write_rows(
            at / "rows-1.jsonl", {k: v[50:51] for k, v in columns().items()} | {"tone": ["high"]}
        ),
        r"'tone' is string. A metric is a number",
    ),
    "an activation that is not finite": (
        {"kind": "npy"},
        lambda at: np.save(at / "shard-1.npy", np.full((1, 2, 6), np.inf, "float32")),
        r"shard-1\.npy, row 0 \(id 'row 50'\): layer 0, unit 0 is inf",
    ),
    "a path out of the folder": (
        {},
        lambda at: change(at, lambda about: about["shards"][0].update(file="../x.safetensors")),
        "only files inside the folder",
    ),
    "an absolute path": (
        {},
        lambda at: change(at, lambda about: about["shards"][0].update(table="/etc/passwd")),
        "only files inside the folder",
    ),
    "a pickle": (
        {"kind": "npy"},
        lambda at: np.save(at / "shard-1.npy", np.array([{}]), allow_pickle=True),
        r"shard-1\.npy holds Python objects \(pickle\)",
    ),
    "zero rows": (
        {},
        lambda at: change(at, lambda about: about["shards"][0].update(rows=0)),
        "1 or more",
    ),
    "no shards": ({}, lambda at: change(at, lambda about: about.update(shards=[])), "'shards' is"),
    "no site": ({}, lambda at: change(at, lambda about: about.pop("site")), "'site' is missing"),
    "layers in no order": (
        {},
        lambda at: change(at, lambda about: about.update(layers=[2, 0])),
        "'layers' is",
    ),
    "an unknown dtype": (
        {},
        lambda at: change(at, lambda about: about.update(dtype="int8")),
        "'dtype' is 'int8'",
    ),
    "another kind of file": (
        {},
        lambda at: (
            (at / "shard-0.safetensors").rename(at / "shard-0.pt")
            and change(at, lambda about: about["shards"][0].update(file="shard-0.pt"))
        ),
        r"shard-0\.pt is no \.safetensors",
    ),
    "another format": ({}, lambda at: change(at, lambda about: about.update(format=1)), "format 1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_named_as_it_is_opened(tmp_path: Path, damage: str) -> None:
    form, do, message = DAMAGE[damage]
    folder = write(tmp_path / "t", numbers(), columns(), **form)
    load(folder)
    do(folder)
    with pytest.raises(LensSkillsError, match=message):
        load(folder)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_a_value_that_is_not_finite_is_named_as_it_is_read(tmp_path: Path, kind: str) -> None:
    acts = numbers()
    acts[70, 0, 1, 4] = torch.nan
    table = load(write(tmp_path / "t", acts, columns(), kind=kind))
    with pytest.raises(LensSkillsError, match=r"row 19 \(id 'row 70'\): layer 2, unit 4 is nan"):
        score(table, table.examples, metrics="tone", **ABOUT)


def test_sums_too_large_for_single_precision_are_no_error(tmp_path: Path) -> None:
    acts = numbers() * 1e37
    table = load(write(tmp_path / "t", acts, columns()))
    found = score(table, table.examples, metrics="tone", **ABOUT)
    small = load(write(tmp_path / "u", numbers(), columns()))
    want = score(small, small.examples, metrics="tone", **ABOUT)
    torch.testing.assert_close(found.r, want.r, rtol=0, atol=1e-5)


def test_a_shard_that_changed_stops_what_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_skills.checkpoints.SECONDS_BETWEEN", 0.0)
    folder = write(tmp_path / "t", numbers(), columns())
    asked = {"metrics": ["tone", "label:even"], **ABOUT, "checkpoint": tmp_path / "c"}
    with config(batch_size=8):
        table = load(folder)
        whole = score(table, table.examples, **asked)
        stop_after(table, 5, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            score(table, table.examples, **asked)
        monkeypatch.undo()
        monkeypatch.setattr("lens_skills.checkpoints.SECONDS_BETWEEN", 0.0)
        read: list[int] = []
        seen = ActivationTable._rows
        monkeypatch.setattr(
            ActivationTable, "_rows", lambda *args: read.append(len(args[1])) or seen(*args)
        )
        resumed = score(load(folder), table.examples, **asked)
        assert sum(read) == N - 5 * 8  # what was summed is not read again
        assert resumed.r.equal(whole.r)
        assert resumed.p.equal(whole.p)
        stop_after(table, 5, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            score(table, table.examples, **asked)
        monkeypatch.undo()
        path = folder / "shard-1.safetensors"
        path.write_bytes(path.read_bytes())
        with pytest.raises(LensSkillsError, match=r"differs in model's shard 2 \(shard-1\.s"):
            score(load(folder), table.examples, **asked)


def stop_after(table: ActivationTable, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's next pass is interrupted after ``n`` batches."""
    read, calls = ActivationTable._rows, []

    def stops(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > n:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(ActivationTable, "_rows", stops)


def test_what_needs_the_model_says_so(tmp_path: Path) -> None:
    table = load(write(tmp_path / "t", numbers(), columns()))
    with pytest.raises(LensSkillsError, match="which a table is not"):
        rank(table, table.examples, "correct", method="taylor")
    with pytest.raises(
        LensSkillsError, match=r"'entropy' reads .* \(stored metrics: correct, tone"
    ):
        score(table, table.examples, metrics="entropy")
    with pytest.raises(LensSkillsError, match="no metric 'tune'"):
        score(table, table.examples, metrics="tune")


@pytest.mark.parametrize("text", [True, False])
def test_neurons_of_shards_are_explained(tmp_path: Path, text: bool) -> None:
    acts, rows = numbers(), columns()
    acts[:, 0, 1, 3] += 3 * torch.tensor(rows["label:even"])
    acts[:, 0, 0, 2] += 2 * torch.tensor(rows["covariate:size"])
    if not text:
        rows.pop("prompt")
    table = load(write(tmp_path / "t", acts, rows))
    found = explain(table, table.examples, ["L2N3", "L0N2"], metric="tone", n_permutations=99)
    best = [one.rows[0] for one in found.neurons]
    assert [row["feature"] for row in best] == ["even", "size"]
    assert all(row["p"] <= 0.05 for row in best)
    assert best[0]["variance_explained"] > 0.4
    assert ("n words" in {row["feature"] for row in found.neurons[0].rows}) <= text
    assert any("have no text" in note for note in found.notes) != text
    top = found.neurons[0].top[0]
    assert top.activation == pytest.approx(float(acts[:, 0, 1, 3].max()))
    assert (top.tokens, bool(top.prompt)) == ((), text)
    assert found.neurons[0].writes is None
    assert found._repr_html_()
    repr(found)
    path = found.save(tmp_path / "kept")
    assert repr(load(path)) == repr(found)
    with pytest.raises(LensSkillsError, match=r"no unit 'L1N3' in the table .* layers \[0, 2\], 6"):
        explain(table, table.examples, ["L1N3"])


def test_a_table_is_read_at_its_own_positions(tmp_path: Path) -> None:
    acts = numbers(2)
    table = load(write(tmp_path / "t", acts, columns(), positions=["mean", "span('x')"]))
    found = score(table, table.examples, metrics="tone", **ABOUT)
    assert found.positions == ("mean", "span('x')")
    x = acts[:, 1, 1, 3].double()
    want = torch.corrcoef(torch.stack([x, torch.tensor(columns()["tone"]).double()]))[0, 1]
    assert float(found.r[0, 1, 9]) == pytest.approx(float(want), abs=1e-6)
    with pytest.raises(LensSkillsError, match=r"several numbers per example"):
        rank(table, table.examples, "tone")


def test_texts_that_look_like_something_else_stay_texts(tmp_path: Path) -> None:
    rows = columns() | {
        "id": [f"2024-01-{n:02}" for n in range(1, N + 1)],
        "group": [str(n // 4) for n in range(N)],
        "prompt": ["2021-05-03"] * N,
        "answer": ["", *[" 07"] * (N - 1)],
        "label:rule": ["", *["abc"[n % 3] for n in range(1, N)]],
    }
    for table in ("csv", "jsonl", "parquet"):
        found = load(write(tmp_path / table, numbers(), rows, table=table))
        first, second = found.examples[0], found.examples[1]
        assert (first.id, first.group, first.prompt) == ("2024-01-01", "0", "2021-05-03")
        assert (first.answer, second.answer) == (None, " 07")
        assert ("rule" in first.labels, second.labels["rule"]) == (False, "b")


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    for table in ("csv", "jsonl", "parquet"):
        found = load(
            write(tmp_path / table, numbers(), columns() | {"id": [*range(N)]}, table=table)
        )
        assert [one.id for one in found.examples] == [str(n) for n in range(N)]
