"""One verdict's measurements: a split is read once, and an interruption loses none of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lens_skills.activations import parse_metrics
from lens_skills.activations.components import parse_components
from lens_skills.data import Example
from lens_skills.interventions import ablate, baselines, controls, partial_effects, verify
from lens_skills.interventions.effects import measure_effects, measurer
from lens_skills.models import as_adapter
from lens_skills.tasks import Task

OPTIONS: dict[str, Any] = {
    "controls": controls(4, 0, 40),
    "delta": 0.5,
    "position": "last",
    "pairs": False,
    "unrelated": False,
}


@pytest.fixture
def task() -> Task:
    found = [
        Example(str(n), f"the {noun}", answer=" is", foil=" are", labels={"long": n % 2})
        for n, noun in enumerate(["key", "keys", "girl", "girls", "boy", "boys"] * 3)
    ]
    return Task("nouns", found)


def test_a_split_is_read_once_for_all_measurements(
    tiny: Any, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    batches = baselines.read_batches

    def counted(adapter: Any, examples: Any, *args: Any, **options: Any) -> Any:
        read.append(len(examples))
        return batches(adapter, examples, *args, **options)

    monkeypatch.setattr(baselines, "read_batches", counted)
    explore, intervene = task[:5], task[5:]
    adapter = as_adapter(tiny)
    metric = parse_metrics("logit_diff")[0]
    do, sets = (
        ablate("mean", over=explore),
        [(unit,) for unit in parse_components(adapter, ["L1N3"])],
    )
    read_once = do.with_baseline(adapter, ["mlp.hook_post"], position="last", answers=True)
    assert read == [5]
    measure = measurer(adapter, metric, "last", 0)
    found = [measure(intervene, sets, read_once, names=["L1N3"]) for k in range(3)]
    change = read_once.bind(adapter, intervene, {"mlp.hook_post": [1]}, position="last")
    found.append(measure(intervene, sets, change, names=["L1N3"]))
    assert read == [5]
    wanted = measure_effects(adapter, intervene, sets, do, metric=metric)
    for effects in found:
        torch.testing.assert_close(effects.total, wanted.total, rtol=0, atol=1e-12)
        assert effects.do == wanted.do


def test_an_interrupted_verdict_goes_on_where_it_stopped(
    tiny: Any, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explore, intervene = task[:5], task[5:]
    names, do = ["L1N3", "L2N5"], ablate("mean", over=explore)
    wanted = verify(tiny, intervene, names, do=do, **OPTIONS)
    room: Any = partial_effects
    fill, parts, folder = room._Sweep._fill, [], tmp_path / "verdict"

    def interrupted(*args: Any) -> None:
        if len(parts) == 8:
            raise KeyboardInterrupt
        parts.append(1)
        fill(*args)

    with monkeypatch.context() as patched:
        patched.setattr(room._Sweep, "_fill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verify(tiny, intervene, names, do=do, checkpoint=folder, **OPTIONS)
    # Pilot and candidates were measured when the controls were interrupted.
    assert list(folder.glob("state-*"))
    whole, rest = [], []
    with monkeypatch.context() as patched:
        patched.setattr(room._Sweep, "_fill", lambda *args: (whole.append(1), fill(*args)))
        verify(tiny, intervene, names, do=do, **OPTIONS)
        patched.setattr(room._Sweep, "_fill", lambda *args: (rest.append(1), fill(*args)))
        found = verify(tiny, intervene, names, do=do, checkpoint=folder, **OPTIONS)
    assert len(rest) == len(whole) - 8
    assert torch.equal(found.effects.total, wanted.effects.total)
    assert torch.equal(found.control_neuron_effect, wanted.control_neuron_effect)
    assert found.rulings == wanted.rulings
    assert not folder.exists()
