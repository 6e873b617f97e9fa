"""Ctrl-C at any pass of any long verb: out at once, no hook is left, and no half file."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lens_skills as ls
from lens_skills.models.backends import as_adapter
from tests.conftest import hooks_on

SUMS = ls.tasks.arithmetic("+", digits=(1,))
SOME = SUMS[:64]
UNITS = ["L0N3", "L1N5", "L1N9"]
TEXT = [
    ls.Example(id=str(k), prompt=f"{k} + 1 =", answer=f" {k + 1}", foil=" 0", group=str(k))
    for k in range(24)
]

PAIRS = [
    ls.Example(
        id=str(k), prompt=f"{k} + 1 =", answer=f" {k + 1}", foil=f" {k + 2}", group=str(k),
        corrupted=f"{k} + 2 =",
    )
    for k in range(8)
]  # fmt: skip

VERBS: dict[str, Callable[[Any, Path], Any]] = {
    "score": lambda m, at: ls.score(
        m, SOME, metrics=["entropy"], n_permutations=19, checkpoint=at / "c"
    ),
    "rank": lambda m, _: ls.rank(m, SOME, "entropy"),
    "capture": lambda m, at: ls.capture(m, SOME, at / "table"),
    "preflight": lambda m, _: ls.preflight(m, SOME),
    "sweep": lambda m, at: ls.sweep(
        m, SOME, UNITS, metric="answer_probability", do=ls.ablate("zero"), checkpoint=at / "c"
    ),
    "verify": lambda m, _: ls.verify(
        m, SOME, UNITS, metric="answer_probability", do=ls.ablate("zero")
    ),
    "prescreen": lambda m, _: ls.prescreen(
        m, SOME, metric="answer_probability", do=ls.ablate("zero")
    ),
    "dose_response": lambda m, _: ls.dose_response(m, SOME, UNITS[0], metric="answer_probability"),
    "generate": lambda m, at: ls.generate(m, TEXT, max_new_tokens=6),
    "fit_prompt": lambda m, _: ls.fit_prompt(m, SOME, n_tokens=2, seeds=1),
    "explain": lambda m, _: ls.explain(m, SOME, UNITS),
    "redundancy": lambda m, _: ls.redundancy(m, SOME, UNITS),
    "confidence_regulators": lambda m, _: ls.confidence_regulators(m, SOME, UNITS),
    "study": lambda m, _: ls.study(m, SUMS, metric="entropy"),
    "memorisation": lambda m, _: ls.memorisation(m, SOME, UNITS),
    "finetune": lambda m, _: ls.finetune(m, SOME, UNITS),
    "circuit": lambda m, _: ls.circuit(m, PAIRS, UNITS[0]),
}


class Interrupt:
    """Sends Ctrl-C from inside the n-th call of a norm; counts those that were begun."""

    def __init__(self, nth: int) -> None:
        self.nth, self.calls = nth, 0

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A norm's ``forward`` that counts: no hook, which would be the user's own."""

        def counted(norm: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.nth:
                signal.raise_signal(signal.SIGINT)
            return forward(norm, *args, **kwargs)

        return counted


@pytest.fixture(scope="module")
def little() -> Any:
    return ls.load_model("arithmetic-small")


@pytest.mark.parametrize("nth", [1, 20])
@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_is_answered_within_one_pass(
    verb: str, nth: int, little: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = as_adapter(little).model
    before, stop = hooks_on(model), Interrupt(nth)
    parameters = [weight.requires_grad for weight in model.parameters()]
    # Of the class, so that a copy of the model counts as well, and a pass that begins anywhere.
    norm = type(model.blocks[0].ln1)
    monkeypatch.setattr(norm, "forward", stop.around(norm.forward))
    with pytest.raises(KeyboardInterrupt), ls.config(progress=False, batch_size=8):
        VERBS[verb](little, tmp_path)
    assert stop.calls == nth  # no pass was begun after it
    assert hooks_on(model) == before
    assert [weight.requires_grad for weight in model.parameters()] == parameters
    assert [path for path in tmp_path.iterdir() if path.name != "c"] == []
