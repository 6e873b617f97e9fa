"""Passes in bfloat16: what is rounded and what is not, in many architectures; what is refused."""

import json
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lens_skills as ls
from lens_skills.cli import app
from lens_skills.cli.runs import Run, RunRequest
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import prescreen, sweep, verify
from lens_skills.models import ModelAdapter, as_adapter, precision, rounding
from lens_skills.models.precision import in_precision
from lens_skills.ranking import rank
from lens_skills.scoring import compare_scores, score
from lens_skills.stats.correlation import rank_agreement
from lens_skills.tasks import few
from lens_skills.tasks.preflight import preflight
from tests.models.families import build, tokenizer

# One of every kind of block: beside each other, windows, norms after sublayers, soft caps, experts,
# biases on scores, projections as Conv1D, relative and learned positions.
KINDS = (
    "gpt2", "gpt_neox", "gptj", "falcon_alibi", "bloom", "mpt", "opt", "llama", "mistral_window",
    "gemma", "gemma2", "gemma3_text", "granite", "olmo2", "phi3", "mixtral", "lfm2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A machine without bfloat16 of its own warns of that, everywhere."""
    with warnings.catch_warnings():
        told = ".*is known to multiply bfloat16"
        warnings.filterwarnings("ignore", message=told, category=RuntimeWarning)
        yield


def replaced(model: Any) -> list[str]:
    """The parts whose forward is not their class's own: TransformerLens replaces a few."""
    return [name for name, part in model.named_modules() if "forward" in part.__dict__]


def batch(adapter: ModelAdapter) -> tuple[Any, Any, Any]:
    """Two prompts, one padded on the left, and where logits are read."""
    tokens = torch.arange(24).view(2, 12) * 7 % adapter.n_embeddings
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, :4] = False
    return tokens, mask, torch.tensor([[11], [11]])


@pytest.mark.parametrize("implementation", ["hooked", "bridge"])
@pytest.mark.parametrize("kind", KINDS)
def test_architectures_are_near_their_own_numbers(kind: str, implementation: str) -> None:
    try:
        model = ls.load_model(build(kind), tokenizer=tokenizer(), implementation=implementation)
    except LensSkillsError:
        pytest.skip("not opened with this implementation")
    adapter, before = as_adapter(model), replaced(model)
    rounded = in_precision(adapter, "bfloat16")
    tokens, mask, at = batch(adapter)
    seen: dict[str, torch.Tensor] = {}
    readers = {"blocks.2.hook_out" if implementation == "bridge" else "blocks.2.hook_resid_post":
               lambda x: seen.setdefault("here", x.detach())}  # fmt: skip
    found = rounded.forward(tokens, mask, readers=readers, logits_at=at)
    wanted = adapter.forward(tokens, mask, readers={}, logits_at=at)
    assert found.dtype == torch.float32 == seen["here"].dtype
    assert torch.isfinite(found).all(), "rows that are padded see nothing"
    gap = (found.log_softmax(-1) - wanted.log_softmax(-1)).abs()
    assert float(gap.max()) > 1e-4, "nothing was rounded"
    assert float(gap.mean()) < 0.15
    assert replaced(model) == before, "something was left on the model"


def test_the_model_and_its_weights_stay(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    before = adapter.fingerprint()
    rounded = in_precision(adapter, "bfloat16")
    tokens, mask, at = batch(adapter)
    first = adapter.forward(tokens, mask, readers={}, logits_at=at)
    rounded.forward(tokens, mask, readers={}, logits_at=at)
    assert torch.equal(adapter.forward(tokens, mask, readers={}, logits_at=at), first)
    assert (adapter.precision, rounded.precision) == (None, "bfloat16")
    assert rounded.fingerprint() == before
    assert in_precision(adapter, None) is adapter
    assert in_precision(rounded, "bfloat16") is rounded

    def failing(activation: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rounded.forward(
            tokens, mask, readers={}, logits_at=at, editors={"blocks.1.mlp.hook_post": failing}
        )
    assert not torch.is_autocast_enabled("cpu")
    assert not replaced(tiny)


@pytest.fixture(scope="module")
def task() -> Any:
    return few(ls.tasks.agreement(), 64)


METRICS = ["label:plural", "confidence", "logit_diff"]


def test_scores_are_near_and_say_so(tiny: Any, task: Any, tmp_path: Path) -> None:
    own = score(tiny, task, metrics=METRICS, n_permutations=20)
    found = score(tiny, task, metrics=METRICS, n_permutations=20, precision="bfloat16")
    gap = (own.r - found.r).abs()
    assert 0 < float(gap.max()) < 0.05
    assert own.provenance["precision"] is None
    assert found.provenance["precision"] == "bfloat16"
    assert "computed in bfloat16" in repr(found)
    assert "bfloat16" not in repr(own)
    again = ls.load(found.save(tmp_path / "scores"))
    assert again.provenance["precision"] == "bfloat16"
    assert "computed in bfloat16" in repr(again)
    # What rounding did can be looked at, and thresholds of one do not serve the other.
    assert compare_scores([own, found], "label:plural", top=20).rank_r[0] > 0.98
    with pytest.raises(LensSkillsError, match="baseline was measured with precision=None"):
        score(tiny, task, metrics="label:plural", baseline=own, precision="bfloat16",
              exploratory=True)  # fmt: skip


def test_parts_of_two_precisions_do_not_add(tiny: Any, task: Any) -> None:
    asked: dict[str, Any] = {"metrics": METRICS, "n_permutations": 19}
    one = ls.score_part(tiny, task[:32], task, precision="bfloat16", **asked)
    with pytest.raises(LensSkillsError, match="do not fit each other: precision is 'bfloat16'"):
        _ = one + ls.score_part(tiny, task[32:], task, **asked)
    both = one + ls.score_part(tiny, task[32:], task, precision="bfloat16", **asked)
    assert "computed in bfloat16" in repr(both.scores(task))


def test_a_checkpoint_is_of_one_precision(tiny: Any, task: Any, tmp_path: Path) -> None:
    def stopping(logits: Any, examples: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return logits[:, 0]

    calls: list[int] = []
    options: dict[str, Any] = {"metrics": {"own": stopping}, "checkpoint": tmp_path / "kept"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lens_skills.checkpoints.SECONDS_BETWEEN", 0.0)
        with pytest.raises(KeyboardInterrupt):
            score(tiny, task, precision="bfloat16", **options)
    with pytest.raises(LensSkillsError, match="differs in precision"):
        score(tiny, task, **options)
    assert len(score(tiny, task, precision="bfloat16", **options).values["own"]) == len(task)


@pytest.mark.parametrize("method", ["pearson", "taylor", "gradient", "auroc"])
def test_rankings_are_near(tiny: Any, task: Any, method: str) -> None:
    metric = "logit_diff" if method in ("taylor", "gradient") else "label:plural"
    own = rank(tiny, task, metric, method=method)
    found = rank(tiny, task, metric, method=method, precision="bfloat16")
    assert own.provenance["precision"] is None
    assert found.provenance["precision"] == "bfloat16"
    assert "computed in bfloat16" in repr(found)
    known = torch.isfinite(own.score) & torch.isfinite(found.score)
    assert not torch.equal(own.score[known], found.score[known])
    assert rank_agreement(own.score[known], found.score[known]) > 0.97


def test_gradients_are_near(tiny: Any, task: Any) -> None:
    options: dict[str, Any] = {"metric": "logit_diff", "do": ls.ablate("mean", over=task)}
    own = prescreen(tiny, task, **options)
    found = prescreen(tiny, task, precision="bfloat16", **options)
    assert (own.precision, found.precision) == (None, "bfloat16")
    assert "computed in bfloat16" in repr(found)
    assert "bfloat16" not in repr(own)
    assert found.predicted is not None
    assert own.predicted is not None
    assert not torch.equal(own.taylor, found.taylor)
    gap = (own.taylor - found.taylor).norm() / own.taylor.norm()
    assert float(gap) < 0.03, "the gradient is of the same function"
    gap = (own.predicted - found.predicted).norm() / own.predicted.norm()
    assert float(gap) < 0.1


def test_preflight_says_what_it_was_computed_in(tiny: Any, task: Any) -> None:
    own, found = preflight(tiny, task), preflight(tiny, task, precision="bfloat16")
    assert "computed in bfloat16" in repr(found)
    assert "bfloat16" not in repr(own)
    assert own.faster == "", "rounding costs more than small products"
    assert found.competences[0].name == own.competences[0].name
    told = replace(own, faster="the CPU's AMX instructions")
    assert "and: score with precision='bfloat16' if it takes long" in repr(told)
    assert max(map(len, repr(told).splitlines())) <= 80


def test_what_is_refused(tiny: Any, task: Any, tmp_path: Path) -> None:
    for wrong in ("float8", "float32", ""):
        with pytest.raises(LensSkillsError, match="Say precision='bfloat16', or leave it out"):
            score(tiny, task, metrics="label:plural", precision=wrong)
    rounded = in_precision(as_adapter(tiny), "bfloat16")
    with pytest.raises(LensSkillsError, match="sweep measures in the model's own precision"):
        sweep(rounded, task, ["L0N1"], do=ls.ablate("zero"), metric="logit_diff")
    with pytest.raises(LensSkillsError, match="verify measures in the model's own precision"):
        verify(rounded, task, ["L0N1"], do=ls.ablate("zero"), metric="logit_diff")
    with pytest.raises(TypeError, match="effects are differences too small for it"):
        ls.verify(tiny, task, ["L0N1"], do=ls.ablate("zero"), precision="bfloat16")
    table = ls.capture(tiny, task, tmp_path / "table")
    with pytest.raises(LensSkillsError, match="leave precision= out, or give the model"):
        score(table, task, metrics="label:plural", precision="bfloat16")


def test_weights_of_another_type_are_computed_as_they_are() -> None:
    half = ls.load_model(build("llama", torch.float16), tokenizer=tokenizer(), dtype="float16")
    with pytest.raises(LensSkillsError, match=r"in float32, and those of .* are float16"):
        in_precision(as_adapter(half), "bfloat16")


def test_a_machine_without_it_is_told(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: "")
    with pytest.warns(RuntimeWarning, match="emulated"):
        in_precision(as_adapter(tiny), "bfloat16")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    with pytest.raises(LensSkillsError, match="this machine has no bfloat16 on cpu"):
        in_precision(as_adapter(tiny), "bfloat16")


def test_a_model_that_does_not_survive_it_is_refused(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise RuntimeError("expected Float but found BFloat16")

    monkeypatch.setitem(rounding.ROUNDED, torch.bfloat16, 1e-4)
    with pytest.raises(LensSkillsError, match="is another model in bfloat16"):
        in_precision(as_adapter(tiny), "bfloat16")
    adapter = as_adapter(tiny)
    monkeypatch.setattr(type(adapter), "_run", refused)
    with pytest.raises(LensSkillsError, match="does not run in bfloat16: expected Float"):
        in_precision(adapter, "bfloat16")


def test_the_shell_takes_it(tiny_bridge: Any, tmp_path: Path) -> None:
    options = {"at": "mlp.hook_post", "n_permutations": 19, "precision": "bfloat16"}
    asked = RunRequest("agreement", ("label:plural",), options=options, limit=48)
    run = Run.create(tmp_path / "run", asked)
    assert Run.load(tmp_path / "run").request == asked
    assert run.explore(tiny_bridge).provenance["precision"] == "bfloat16"
    confirmed = run.confirm(tiny_bridge, "label:plural", fdr=0.05, top=5)
    assert "bfloat16" in json.dumps(confirmed.provenance)
    told = ["score", "agreement", "--out", str(tmp_path / "other"), "--precision", "float8"]
    with ls.config():  # what a command sets ends with it
        done = CliRunner().invoke(app.app, told)
    assert done.exit_code == 1
    assert "no precision 'float8'" in done.output
    assert "bfloat16" in done.output
