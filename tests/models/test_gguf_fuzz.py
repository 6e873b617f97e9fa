"""A damaged GGUF file is opened or refused: nothing of the readers' own escapes."""

from pathlib import Path

import pytest

from tests.models.gguf_damage import damaged, opens

COPIES = 40  # python -m tests.models.gguf_damage 10000 opens as many as one likes


@pytest.mark.filterwarnings("error")
def test_damaged_files_are_opened_or_refused(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_SKILLS_CACHE", str(tmp_path / "cache"))
    whole, ends = tiny_gguf.read_bytes(), []
    for seed in range(COPIES):
        path = tmp_path / f"damaged-{seed}.gguf"
        path.write_bytes(damaged(whole, seed))
        ends.append(opens(path))
    assert ends.count("refused") > COPIES / 2  # else nothing was damaged
    assert not list((tmp_path / "cache").glob(".*-*"))  # nothing half done is left
