"""Whatever befalls a file, it is read row by row or refused by our own error."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lens_skills.tasks import Task
from tests.mutations import READERS, mutated, outcome


@pytest.mark.parametrize("name", READERS)
def test_the_file_itself_is_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    path = tmp_path / f"a{reader.ending}"
    assert outcome(reader, reader.content, path) == "read"
    found = reader.read(path)
    assert not isinstance(found, Task) or len(found) > 1


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]

    @settings(
        max_examples=30, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, 2**32))
    def holds(seed: int) -> None:
        data = mutated(Random(seed), reader)
        found = outcome(reader, data, tmp_path / f"a{reader.ending}")
        assert found in ("read", "refused"), data

    holds()
