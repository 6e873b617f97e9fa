"""Options that change no result: set for good, for a block, and refused when misspelt."""

import pytest

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.settings import batch_size, config, edit_rows, hides_progress, memory_mb


def test_a_block_puts_everything_back_even_after_an_error() -> None:
    before = repr(config())
    with config(batch_size=3, progress=False):
        assert (batch_size(), hides_progress()) == (3, True)
        with config(batch_size=5):
            assert (batch_size(), hides_progress()) == (5, True)
        assert batch_size() == 3
    assert repr(config()) == before
    with pytest.raises(ZeroDivisionError), config(batch_size=3):
        _ = 1 / 0
    assert repr(config()) == before


def test_it_also_sets_from_now_on() -> None:
    with config():
        config(batch_size=7)
        assert batch_size() == batch_size(16) == 7
    assert (batch_size(), batch_size(16)) == (32, 16)
    with config(memory_mb=300, edit_rows=64):
        assert (memory_mb(2000), edit_rows()) == (300, 64)
    assert (memory_mb(2000), memory_mb(None), edit_rows()) == (2000, None, None)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batchsize": 3}, "no option 'batchsize'. There are: batch_size"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 on, not 0"),
        ({"batch_size": True}, "not True"),
        ({"progress": "yes"}, "progress must be True, False or None"),
        ({"memory_mb": -1}, "memory_mb must be a whole number from 0 on"),
        ({"edit_rows": 0}, "edit_rows must be a whole number from 1 on"),
    ],
)
def test_a_wrong_option_changes_nothing(options: dict, complaint: str) -> None:
    before = repr(config())
    with pytest.raises(LensSkillsError, match=complaint):
        ls.config(**options)
    assert repr(config()) == before
