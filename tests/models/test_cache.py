"""The cache of converted GGUF files: whole or absent, whatever happens."""

import copy
import json
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter, conversion, gguf_cache, load_model, parity
from lens_skills.models.conversion import to_bridge
from tests.models.conftest import IMPLEMENTATIONS, same_as

every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The conversions made in this test."""
    made: list[Path] = []
    build = gguf_cache._build

    def counted(gguf: Path, entry: Path) -> None:
        made.append(entry)
        build(gguf, entry)

    monkeypatch.setattr(gguf_cache, "_build", counted)
    return made


@every
def test_a_gguf_file_is_converted_once(
    tiny_gguf: Path, tiny_hf: Any, implementation: Any, builds: list[Path]
) -> None:
    first = load_model(tiny_gguf, implementation=implementation)
    same_as(first, tiny_hf[0])
    second = load_model(str(tiny_gguf), implementation=implementation)
    assert as_adapter(second).fingerprint() == as_adapter(first).fingerprint()
    assert as_adapter(first).name == "tiny"
    text = "The key to the cabinets is 12"
    assert (
        as_adapter(first).encode_plain(text) == tiny_hf[1](text, add_special_tokens=False).input_ids
    )
    assert len(builds) == 1


@every
def test_parity_is_measured_once_and_stored(
    tiny_gguf: Path, implementation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_model(tiny_gguf, implementation=implementation)
    assert first.parity.log_probability < 1e-4
    assert first.parity.activation < 1e-4
    monkeypatch.setattr(parity, "references", None)  # would raise when called
    monkeypatch.setattr(parity, "measured", None)
    assert load_model(tiny_gguf, implementation=implementation).parity == first.parity


def test_a_parity_stands_for_its_weights_versions_and_dtype(
    tiny_folder: Path, tiny_hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    measure = parity.measured
    monkeypatch.setattr(parity, "measured", lambda *a: measured.append(a) or measure(*a))

    def opened(where: Any = tiny_folder, **options: Any) -> int:
        load_model(where, implementation="bridge", **options)
        return len(measured)

    assert opened() == opened() == 1
    assert opened(dtype="bfloat16") == opened(dtype="bfloat16") == 2
    other = copy.deepcopy(tiny_hf[0])
    with torch.no_grad():
        other.lm_head.weight[3, 5] += 1e-3
    other.save_pretrained(tmp_path / "other")
    assert opened(tmp_path / "other", tokenizer=tiny_hf[1]) == 3
    monkeypatch.setattr(parity, "versions", lambda: {"torch": "9"})
    assert opened() == opened() == 4


def test_a_failed_parity_is_stored_too(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(source: Any, *, device: str) -> Any:
        bridge = to_bridge(source, device=device)
        with torch.no_grad():
            bridge.original_model.model.layers[2].mlp.down_proj.original_component.weight[3] += 1.0
        return bridge

    monkeypatch.setattr(conversion, "has_hooked", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "to_bridge", corrupt)
        with pytest.raises(LensSkillsError, match="does not compute what the original"):
            load_model(tiny_gguf, implementation="bridge")
    with pytest.raises(LensSkillsError, match="does not compute what the original"):
        load_model(tiny_gguf, implementation="bridge")  # the conversion is as it was: no new try
    monkeypatch.setattr(parity, "versions", lambda: {"torch": "9"})
    load_model(tiny_gguf, implementation="bridge")


def damage_truncated(entry: Path) -> None:
    weights = entry / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def damage_flipped(entry: Path) -> None:
    weights = entry / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-50] ^= 1
    weights.write_bytes(raw)


def damage_missing(entry: Path) -> None:
    (entry / "tokenizer.json").unlink()


def damage_manifest(entry: Path) -> None:
    (entry / gguf_cache.MANIFEST).write_text("{")


def damage_other_manifest(entry: Path) -> None:
    manifest = json.loads((entry / gguf_cache.MANIFEST).read_text())
    manifest["files"]["config.json"] = "0" * 64
    (entry / gguf_cache.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncated,
        damage_flipped,
        damage_missing,
        damage_manifest,
        damage_other_manifest,
    ],
)
def test_a_damaged_cache_is_built_again(tiny_gguf: Path, builds: list[Path], damage: Any) -> None:
    entry = gguf_cache.converted(tiny_gguf)
    assert gguf_cache.intact(entry)
    damage(entry)
    assert not gguf_cache.intact(entry)
    assert gguf_cache.converted(tiny_gguf) == entry
    assert gguf_cache.intact(entry)
    assert len(builds) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path, error: type[BaseException]
) -> None:
    def interrupt() -> dict[str, str]:
        raise error("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_cache, "_versions", interrupt)
        expected = LensSkillsError if error is OSError else error
        with pytest.raises(expected, match="in the middle"):
            gguf_cache.converted(tiny_gguf)
    assert [path.name for path in own_cache.iterdir() if path.is_dir()] == []
    assert gguf_cache.intact(gguf_cache.converted(tiny_gguf))


def test_what_a_killed_process_left_is_cleared(tiny_gguf: Path, own_cache: Path) -> None:
    entry = gguf_cache.entry_of(tiny_gguf)
    half_done = own_cache / f".{entry.name}-killed"
    half_done.mkdir(parents=True)
    (half_done / "model.safetensors").write_bytes(b"half")
    assert gguf_cache.intact(gguf_cache.converted(tiny_gguf))
    assert not half_done.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from lens_skills.models import gguf_cache
from lens_skills.models.gguf_weights import Weights

def some(self):
    for number, piece in enumerate(pieces(self)):
        if number == 5:
            next(Path(os.environ["LENS_SKILLS_CACHE"]).glob(".*/model.safetensors"))
            os.kill(os.getpid(), signal.SIGKILL)
        yield piece

pieces, Weights.pieces = Weights.pieces, some
gguf_cache.converted(Path(sys.argv[1]))
"""


def test_a_process_killed_while_it_writes_leaves_nothing_that_opens(
    tiny_gguf: Path, own_cache: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tiny_gguf)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    entry = gguf_cache.entry_of(tiny_gguf)
    (half_done,) = (path for path in own_cache.iterdir() if path.is_dir())
    assert (half_done / gguf_cache.WEIGHTS).exists()
    assert half_done != entry
    assert not gguf_cache.intact(half_done)
    assert gguf_cache.intact(gguf_cache.converted(tiny_gguf))
    assert [path for path in own_cache.iterdir() if path.is_dir()] == [entry]


def test_a_disk_that_fills_up(tiny_gguf: Path, own_cache: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(LensSkillsError, match=r"cannot be written.*Make room"):
            gguf_cache.converted(tiny_gguf)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in own_cache.iterdir() if path.is_dir()] == []


def test_two_at_once_convert_once(tiny_gguf: Path, builds: list[Path]) -> None:
    with ThreadPoolExecutor(2) as pool:
        entries = list(pool.map(gguf_cache.converted, [tiny_gguf, tiny_gguf]))
    assert entries[0] == entries[1]
    assert gguf_cache.intact(entries[0])
    assert len(builds) == 1


def test_the_cache_is_looked_at_ahead(
    tiny_gguf: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = gguf_cache.entry_of(tiny_gguf)
    first = gguf_cache.look_ahead(tiny_gguf)
    assert first.result(30) == (entry, False)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_cache, "entry_of", None)  # would raise when called: no second hash
        assert gguf_cache.converted(tiny_gguf, first) == entry
    assert gguf_cache.look_ahead(tiny_gguf).result(30) == (entry, True)
    damage_flipped(entry)
    damaged = gguf_cache.look_ahead(tiny_gguf)
    assert damaged.result(30) == (entry, False)
    assert gguf_cache.converted(tiny_gguf, damaged) == entry
    assert len(builds) == 2
    whole = gguf_cache.look_ahead(tiny_gguf)
    assert whole.result(30) == (entry, True)
    monkeypatch.setattr(gguf_cache, "intact", None)
    assert gguf_cache.converted(tiny_gguf, whole) == entry
    monkeypatch.setattr(gguf_cache, "_sha256", None)
    (tmp_path / "other.gguf").write_bytes(b"no GGUF")
    assert gguf_cache.look_ahead(tmp_path / "other.gguf").result(30) is None
    assert gguf_cache.look_ahead(tmp_path / "none.gguf").result(30) is None


def test_not_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(LensSkillsError, match="is not a GGUF file"):
        load_model(path)
    path.write_bytes(b"")
    with pytest.raises(LensSkillsError, match="is not a GGUF file"):
        load_model(path)


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.01])
def test_a_truncated_gguf_file(
    tiny_gguf: Path, tmp_path: Path, own_cache: Path, kept: float
) -> None:
    raw = tiny_gguf.read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(raw[: int(len(raw) * kept)])
    with pytest.raises(LensSkillsError, match="truncated"):
        load_model(path)
    assert [found.name for found in own_cache.iterdir() if found.is_dir()] == []


def test_a_cache_that_cannot_be_written(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LENS_SKILLS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LensSkillsError, match="set LENS_SKILLS_CACHE"):
        load_model(tiny_gguf)
