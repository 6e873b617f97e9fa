"""Sums of parts, added in any order, are the sums of all; what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens_skills.activations import capture
from lens_skills.activations.activation_table import ActivationTable
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.saved import load
from lens_skills.scoring import Scores, score, score_part
from tests.scoring.test_handmade import examples_with, factor_activations

N = 160
ABOUT = {
    "model": "m", "model_fingerprint": "f", "site": "mlp.hook_post", "layers": [0, 1],
    "positions": ["last"],
}  # fmt: skip
SAME = ("r", "low", "high", "p", "p_family", "q", "p_control", "q_control", "mean", "std")


def data(groups: str) -> tuple[torch.Tensor, list[Example], dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    acts = torch.from_numpy(factor_activations(random, N, 2, 5))
    codes = {"own": None, "many": np.arange(N) // 2, "few": np.arange(N) % 20}[groups]
    examples = examples_with(
        N,
        groups=codes,
        kinds=None if codes is None else np.arange(N) % 40,
        labels={"y": np.arange(N) // 2 % 2, "z": random.integers(0, 2, N)},
        covariates={"size": random.normal(size=N)},
    )
    return acts, examples, {"sure": random.normal(size=N) + acts[:, 0, 1].numpy()}


def table_of(acts: Any, examples: Any, metrics: Any, rows: Any, **about: Any) -> ActivationTable:
    numbers = {name: values[rows] for name, values in metrics.items()}
    return ActivationTable.of(acts[rows], [examples[r] for r in rows], ABOUT | about, numbers)


def close(one: Scores, two: Scores) -> None:
    """The same numbers, to the rounding of double precision."""
    for name in SAME:
        here, there = getattr(one, name), getattr(two, name)
        assert (here is None) == (there is None), name
        if here is not None:
            torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9, msg=name)
    for name in one.metrics:
        torch.testing.assert_close(one.values[name], two.values[name], rtol=0, atol=0)
        torch.testing.assert_close(one.null_max[name], two.null_max[name], rtol=1e-9, atol=1e-9)
    assert one.thresholds == pytest.approx(two.thresholds)
    assert one.notes == two.notes
    assert one.metrics == two.metrics
    assert one.n_groups == two.n_groups


@pytest.mark.parametrize("groups", ["own", "many", "few"])
@pytest.mark.parametrize("given", [False, True])
def test_parts_add_up_to_all(groups: str, given: bool) -> None:
    acts, examples, metrics = data(groups)
    order = np.random.default_rng(0).permutation(N)
    asked: dict[str, Any] = {"metrics": ["label:y", "label:z"], "n_permutations": 39, "seed": 5}
    asked |= {"given": ["size"]} if given else {"metrics": ["label:y", "label:z", "sure"]}
    whole = score(table_of(acts, examples, metrics, np.arange(N)), examples, n_rotations=0, **asked)
    parts = []
    for rows in (order[:13], order[13:100], order[100:]):
        table = table_of(acts, examples, metrics, rows)
        parts.append(score_part(table, table.examples, examples, **asked))
    one, two, three = parts
    for added in (one + two + three, three + (one + two)):
        assert added.n_read == N
        close(added.scores(examples), whole)


def test_a_part_is_saved_and_read_back(tmp_path: Path) -> None:
    acts, examples, metrics = data("many")
    tables = [table_of(acts, examples, metrics, rows) for rows in np.split(np.arange(N), [70])]
    asked: dict[str, Any] = {"metrics": ["label:y", "sure"], "n_permutations": 19}
    parts = [score_part(table, table.examples, examples, **asked) for table in tables]
    paths = [part.save(tmp_path / str(n)) for n, part in enumerate(parts)]
    again = load(paths[0]) + load(paths[1])
    assert again.scores(examples).r.equal((parts[0] + parts[1]).scores(examples).r)
    assert "70 of 160 examples read" in repr(parts[0])


def test_parts_of_a_model_and_of_its_table(tiny: Any, tmp_path: Path) -> None:
    examples = [
        Example(f"{n}", f"The {word} {n}", labels={"y": n % 2, "n": n})
        for n, word in enumerate(("key", "boys", "doctor") * 12)
    ]
    asked: dict[str, Any] = {"metrics": ["label:y", "entropy"], "n_permutations": 19}
    asked |= {"n_controls": 0}
    whole = score(tiny, examples, n_rotations=0, **asked)
    parts = [score_part(tiny, part, examples, **asked) for part in (examples[:9], examples[9:])]
    both = (parts[0] + parts[1]).scores(examples)
    torch.testing.assert_close(both.r, whole.r, rtol=0, atol=1e-5)  # other batches, in float32
    torch.testing.assert_close(both.values["entropy"], whole.values["entropy"], rtol=0, atol=1e-5)
    table = capture(tiny, examples[9:], tmp_path / "t", metrics="entropy", dtype="float32")
    tabled = score_part(table, table.examples, examples, **asked)
    with pytest.raises(LensSkillsError, match=r"do not fit .*: dtype is 'torch.float32' in one"):
        parts[0] + tabled


def test_what_does_not_fit_is_refused_with_what_and_why() -> None:
    acts, examples, metrics = data("many")
    first, rest = np.arange(50), np.arange(50, N)
    asked: dict[str, Any] = {"metrics": ["label:y", "sure"], "n_permutations": 19}

    def part(rows: Any, about: Any = None, **options: Any) -> Any:
        table = table_of(acts, examples, metrics, rows, **(about or {}))
        return score_part(table, table.examples, options.pop("all", examples), **asked | options)

    one = part(first)
    for about, message in (
        ({"model": "other"}, "model is 'm' in one and 'other'"),
        ({"model_fingerprint": "g"}, "model_fingerprint is 'f' in one and 'g'"),
        ({"layers": [0, 3]}, r"layers is \[0, 1\] in one and \[0, 3\]"),
        ({"chat": True}, "chat is False in one and True"),
    ):
        with pytest.raises(LensSkillsError, match=f"parts do not fit each other: {message}"):
            one + part(rest, about, chat=about.get("chat", False))
    with pytest.raises(LensSkillsError, match="other: metrics is"):
        one + part(rest, metrics=["label:y", "label:z"])
    with pytest.raises(LensSkillsError, match="other: seed is 0 in one and 1"):
        one + part(rest, seed=1)
    with pytest.raises(LensSkillsError, match="other neurons"):
        one + part(rest, neurons=["L0N1"])
    with pytest.raises(LensSkillsError, match="other: examples is"):
        one + part(rest, all=examples[::-1])
    with pytest.raises(LensSkillsError, match=r"10 examples were read in both .* number 40 of"):
        one + part(np.arange(40, N))
    with pytest.raises(LensSkillsError, match=r"110 of 160 examples were not read .*'e50'"):
        one.scores(examples)
    with pytest.raises(LensSkillsError, match="not the examples the parts were scored for"):
        (one + part(rest)).scores(examples[1:])
    with pytest.raises(LensSkillsError, match="'e150' of this part is not among all"):
        part(np.arange(150, N), all=examples[:150])
    with pytest.raises(LensSkillsError, match=r"given=\['size'\]: .* those of its own only"):
        part(first, given=["size"])
    with pytest.raises(LensSkillsError, match="not to a int"):
        one + 1
    done = (one + part(rest)).scores(examples)
    with pytest.raises(LensSkillsError, match="finished scores cannot be added"):
        done + done


def test_a_part_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_skills.checkpoints.SECONDS_BETWEEN", 0.0)
    acts, examples, metrics = data("own")
    table = table_of(acts, examples, metrics, np.arange(30, N))
    asked: dict[str, Any] = {"metrics": ["label:y", "sure"], "n_permutations": 19}
    whole = score_part(table, table.examples, examples, **asked)
    seen, calls = ActivationTable._rows, []

    def stops(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return seen(*args)

    monkeypatch.setattr(ActivationTable, "_rows", stops)
    for _ in range(2):
        if not calls:
            with pytest.raises(KeyboardInterrupt):
                score_part(table, table.examples, examples, checkpoint=tmp_path / "c", **asked)
    (state,) = (tmp_path / "c").glob("state-*")
    assert json.loads((state / "state.json").read_text())["batches"] == 1
    found = score_part(table, table.examples, examples, checkpoint=tmp_path / "c", **asked)
    assert all(found.sums[name].equal(sums) for name, sums in whole.sums.items())


def test_what_is_counted_against_a_baseline_adds(tmp_path: Path) -> None:
    acts, examples, metrics = data("many")
    rest, rows = np.arange(60), np.arange(60, N)
    before = table_of(acts, examples, metrics, rest)
    asked: dict[str, Any] = {"metrics": ["label:y", "label:z", "sure"], "n_permutations": 19}
    baseline = score(before, before.examples, **asked)
    own, order = [examples[row] for row in rows], np.random.default_rng(0).permutation(rows)
    whole = score(
        table_of(acts, examples, metrics, rows), own, baseline=baseline, n_rotations=0, **asked
    )
    assert set(whole.predictivity) == {"label:y", "label:z"}
    parts = []
    for some in (order[:7], order[7:]):
        table = table_of(acts, examples, metrics, some)
        parts.append(score_part(table, table.examples, own, baseline=baseline, **asked))
    parts[0].save(tmp_path / "part")
    for added in (load(tmp_path / "part") + parts[1], parts[1] + parts[0]):
        found = added.scores(own)
        close(found, whole)
        for name, numbers in whole.predictivity.items():
            assert torch.equal(found.predictivity[name], numbers)
    table = table_of(acts, examples, metrics, order[:7])
    for other in (None, score(before, before.examples[:50], **asked)):
        with pytest.raises(LensSkillsError, match="different baselines, or one has none"):
            score_part(table, table.examples, own, baseline=other, **asked) + parts[1]
    with pytest.raises(LensSkillsError, match="measured on 60 examples of this split"):
        score_part(before, before.examples, [*before.examples, *own], baseline=baseline, **asked)
