"""The prepared script for a GPU: it runs without one where asked to, and claims nothing then."""

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import lens_skills as ls

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
gpu: Any = import_module("gpu")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--save"])
    with pytest.raises(SystemExit, match="nothing was measured, and nothing is claimed"):
        gpu.main()
    monkeypatch.setattr("sys.argv", ["gpu.py", "--save", "--device", "cpu", "--small"])
    with pytest.raises(SystemExit, match="a smoke run is no measurement"):
        gpu.main()


def test_the_same_code_runs_on_a_cpu(
    tiny_hooked: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ls, "load_model", lambda *_, **__: tiny_hooked)
    setting = gpu.Setting(torch.device("cpu"), True, time.monotonic() + 1000, {})
    with ls.config(progress=False):
        figures = gpu.everything(setting)
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err[-800:]
    for verb in ("score", "sweep", "verify", "soft_prompt"):
        assert figures[f"gpu_{verb}_float32_gap"] == 0, f"{verb} refused:\n{said.out}"
    assert 0 < figures["gpu_precision_moved_p999"] < 0.1
    assert figures["gpu_whole_layers"] == 4
    assert figures["gpu_score_vs_forward"] > 0
    assert figures["gpu_sweep_vs_loop_b1"] > 0
