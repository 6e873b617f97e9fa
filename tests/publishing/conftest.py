"""One small study of a random model, which the tests of published sets are about."""

from typing import Any

import pytest

import lens_skills as ls
from lens_skills.interventions import controls
from lens_skills.studies import Study
from lens_skills.tasks import Task
from tests.interventions.test_verify import part


@pytest.fixture(scope="session")
def task() -> Task:
    return part(3, 160)


@pytest.fixture(scope="session")
def found(tiny_hooked: Any, task: Task) -> Study:
    return ls.study(
        tiny_hooked,
        task,
        metric="label:plural",
        controls=controls(4, neurons=20),
        n_permutations=19,
        n_intervene=24,
        most=3,
        delta=0.5,
    )
