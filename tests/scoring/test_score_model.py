"""A neuron planted in a model is found, and only while it is planted; by both implementations."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lens_skills.data import Example
from lens_skills.scoring import score, select
from lens_skills.stats.moments import RunningMoments
from tests.planted import planted

LAYER, NEURON = 1, 7
NOUNS = ("key", "keys", "girl", "girls", "boy", "boys", "author", "authors", "doctor", "doctors")
FRAMES = ("{0} near the {1}", "the {0} to the {1}", "hello {0} and {1}", "when {0} or the {1} {2}")


def examples(model: Any, part: int, n: int = 160) -> list[Example]:
    """Prompts that end in " are" or " is" after random words; ids and groups of their own split."""
    random = np.random.default_rng(part)
    found = []
    for place in range(n):
        words = random.choice(NOUNS, 3)
        plural = int(random.integers(2))
        text = FRAMES[place % 4].format(*words) + (" are" if plural else " is")
        found.append(
            Example(
                f"{part}/{place}",
                text,
                labels={"plural": plural, "shuffled": int(random.integers(2))},
                kind=f"{part} {place % 40}",
            )
        )
    return found


def ends(model: Any) -> tuple[list[int], list[int]]:
    encode = model.tokenizer.encode
    return tuple(encode(word, add_special_tokens=False) for word in (" are", " is"))  # type: ignore


@pytest.fixture(params=["carrier", "decoy"])
def carrier(request: pytest.FixtureRequest, tiny: Any) -> Iterator[Any]:
    """The model with a neuron that knows; the decoy knows and writes nothing."""
    writes = None if request.param == "carrier" else 0
    with planted(tiny, LAYER, NEURON, *ends(tiny), writes=writes):
        yield tiny


OPTIONS: dict[str, Any] = {"layers": [1, 2, 3], "n_permutations": 100}


def test_a_planted_neuron_ranks_first(carrier: Any) -> None:
    """A score is a correlation: a decoy that writes nothing is found as well."""
    found = score(carrier, examples(carrier, 0), metrics="label:plural", **OPTIONS)
    assert found["label:plural"].top(1).rows.tolist() == [[LAYER, NEURON]]
    best = found["label:plural"].frame().iloc[0]
    assert (best.layer, best.neuron) == (LAYER, NEURON)
    assert best.r > 0.8
    assert best.p_family == pytest.approx(1 / 101)


def test_it_does_not_rank_first_where_it_is_not_planted(tiny: Any) -> None:
    found = score(tiny, examples(tiny, 0), metrics="label:plural", **OPTIONS)
    place = found["label:plural"].top(1000).rows.tolist().index([LAYER, NEURON])
    assert place > 0


def test_it_does_not_rank_first_for_shuffled_labels(carrier: Any) -> None:
    metrics = ["label:shuffled", "label:plural"]
    found = score(carrier, examples(carrier, 0), metrics=metrics, **OPTIONS)
    assert found["label:shuffled"].top(1).rows.tolist() != [[LAYER, NEURON]]
    assert not found["label:shuffled"].passing()["associated"].any()
    assert found["label:plural"].passing()["associated"].any()


def test_it_is_confirmed_on_unseen_examples_and_not_with_flipped_labels(tiny: Any) -> None:
    with planted(tiny, LAYER, NEURON, *ends(tiny)):
        parts = [examples(tiny, part) for part in (0, 1)]
        explore, confirm = (score(tiny, part, metrics="label:plural", **OPTIONS) for part in parts)
        flipped = score(
            tiny,
            parts[1],
            metrics={"label:plural": [1 - int(e.labels["plural"]) for e in parts[1]]},
            **OPTIONS,
        )
    found = select(explore["label:plural"], confirm["label:plural"], grade="C")
    assert found.names[0] == f"L{LAYER}N{NEURON}"
    turned = select(explore["label:plural"], flipped["label:plural"], grade="C")
    assert f"L{LAYER}N{NEURON}" not in turned.names


def test_both_implementations_give_the_same_scores(tiny_hooked: Any, tiny_bridge: Any) -> None:
    metrics = ["label:plural", "confidence", "entropy"]
    one, other = (
        score(model, examples(model, 2, 60), metrics=metrics, n_permutations=39)
        for model in (tiny_hooked, tiny_bridge)
    )
    torch.testing.assert_close(one.r, other.r, rtol=0, atol=1e-4)
    for name in metrics:
        torch.testing.assert_close(one.null_max[name], other.null_max[name], rtol=0, atol=1e-4)
        torch.testing.assert_close(one.rotated_r[name], other.rotated_r[name], rtol=0, atol=2e-3)
    assert one.example_ids == other.example_ids


def test_no_tensor_of_examples_by_neurons_is_kept(
    tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pass keeps does not grow with its examples, but for one number per metric."""
    sizes = {}
    for n in (64, 512):
        kept: list[int] = []

        def freeze(running: Any, real: Any = RunningMoments.freeze, to: Any = kept) -> Any:
            running.settle()
            tensors = [v for v in vars(running).values() if isinstance(v, torch.Tensor)]
            to.append(sum(v.untyped_storage().nbytes() for v in tensors))
            return real(running)

        monkeypatch.setattr(RunningMoments, "freeze", freeze)
        numbers = {"n": np.sin(np.arange(n))}
        score(
            tiny_bridge,
            examples(tiny_bridge, 3, n),
            metrics=numbers,
            layers=0,
            n_permutations=39,
        )
        (sizes[n],) = kept
    assert sizes[64] == sizes[512]


def test_the_calibration_of_the_confidence_stands_in_the_summary(tiny: Any) -> None:
    items = [
        Example(f"{i}", f"What is {i % 10} plus {i // 10}? A: ", str(i % 10)) for i in range(40)
    ]
    metrics = ["confidence", "entropy"]
    found = score(tiny, items, metrics=metrics, n_permutations=0)
    assert found.calibration() is None
    right = {"confidence": "confidence", "first_token_correct": "first_token_correct"}
    found = score(tiny, items, metrics=right, n_permutations=0)
    table = found.calibration()
    assert table is not None
    confidence, correct = found.values["confidence"], found.values["first_token_correct"]
    bins = (confidence * 10).floor().clamp(max=9)
    error = sum(
        float((bins == b).double().mean())
        * abs(float(confidence[bins == b].mean() - correct[bins == b].mean()))
        for b in bins.unique()
    )
    assert table.error == pytest.approx(error, abs=1e-12)
    assert f"calibration error of the confidence: {error:.2f}" in repr(found)
