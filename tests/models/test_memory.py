"""What is free, what is held, and which errors say that memory ran out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lens_skills.models import memory
from lens_skills.models.memory import PeakMemory, free_bytes, out_of_memory


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate "
                      "memory: you tried to allocate 4 bytes. Error code 12 (Cannot allocate "
                      "memory)"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)  # fmt: skip
def test_only_errors_of_memory_say_so(error: BaseException, said: bool) -> None:
    assert out_of_memory(error) is said


def test_a_real_allocation_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)


def test_free_memory_is_the_least_of_the_machine_and_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "max", tmp_path / "now"
    monkeypatch.setattr(memory, "_GROUPS", ((str(limit), str(used)),))
    monkeypatch.setattr(memory, "_available", lambda: 500)
    assert free_bytes() == 500
    limit.write_text("1000\n")
    used.write_text("800\n")
    assert free_bytes("cpu") == 200
    limit.write_text("max\n")
    assert free_bytes() == 500
    monkeypatch.setattr(memory, "_available", lambda: None)
    assert free_bytes() is None


def test_this_machine_tells() -> None:
    found = free_bytes()
    assert found is None or 2**20 < found < 2**50


def test_the_peak_counts_what_is_alive_at_once_and_views_once() -> None:
    given = torch.zeros(1000)
    with PeakMemory() as seen:
        for _ in range(5):
            made = given + 1  # 4,000 bytes, while the one before is alive
            part = made[:10].view(2, 5)
            made.add_(1)
    assert part.shape == (2, 5)
    assert seen.peak == 8000
    with PeakMemory() as seen:
        given.mul_(2)
    assert seen.peak == 0


def test_a_gpu_counts_what_is_held_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        mem_get_info=lambda device: (1000, 9000),
        memory_reserved=lambda device: 300,
        memory_allocated=lambda device: 100,
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    assert free_bytes("cuda:0") == 1200
