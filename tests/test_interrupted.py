"""Ctrl-C at any pass of any verb that runs a model: out at once, no hook left, no half file."""

import inspect
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import lens_skills as ls
from lens_skills.generation import capture_text
from lens_skills.models.backends import as_adapter
from lens_skills.soft_prompts import initial_prompt
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

OTHERS = [
    ls.Example(
        id=str(k), prompt=f"\nQ: What is {k % 7} plus {k % 5}?\nA: ", answer=str(k % 7 + k % 5),
        foil=str(k % 7 + k % 5 + 1), group=str(k),
        corrupted=f"\nQ: What is {k % 7} plus {k % 5 + 1}?\nA: ",
    )
    for k in range(24)
]  # fmt: skip
EXPLORE, REST = SUMS.split(0.5, 0.5, seed=0)
PLUS, MINUS = SUMS[:60], ls.tasks.arithmetic("-", digits=(1,))[:60]
BOTH = {"plus": PLUS, "minus": MINUS}
SPLICED = ls.tasks.splice(BOTH, 20, pieces=2)
ZERO = ls.ablate("zero")


@cache
def published(model: Any) -> ls.NeuronSet:
    return ls.NeuronSet.of(UNITS, model, SUMS, licence="MIT")


@cache
def written(model: Any) -> Any:
    return ls.generate(model, TEXT, max_new_tokens=4)


@cache
def circuit(model: Any) -> Any:
    return ls.circuit(model, OTHERS, n_edges=10, depth=1, n_random=40)


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
    "faithfulness": lambda m, _: ls.faithfulness(m, OTHERS, circuit(m)),
    "activating_examples": lambda m, _: ls.activating_examples(m, SOME, UNITS, lenses=()),
    "audit": lambda m, _: ls.audit(m, SUMS, neurons=UNITS, metric="answer_probability", do=ZERO),
    "compare_methods": lambda m, _: ls.compare_methods(
        m, EXPLORE, "entropy", intervene=REST, methods=["pearson", "smd"], k=5
    ),
    "compare_prompts": lambda m, _: ls.compare_prompts(m, SOME, initial_prompt(m, 2)),
    "continual": lambda m, _: ls.continual(m, BOTH, masks=("ncft",), seeds=1, epochs=1),
    "damage_matrix": lambda m, _: ls.damage_matrix(
        m, BOTH, {"plus": UNITS[:1], "minus": UNITS[1:]}, ZERO
    ),
    "dissect": lambda m, _: ls.dissect(
        m, PLUS, shares=(0.04,), n_neurons=2, n_random=1, layers=[2], n_permutations=39
    ),
    "estimate": lambda m, _: ls.estimate("score", m, SOME, metrics=["entropy"]),
    "fit_count": lambda m, _: ls.fit_count(m, PLUS, "covariate:ones_a", layers=1),
    "minimal_set": lambda m, _: ls.minimal_set(m, EXPLORE, REST, metric="label:even"),
    "pseudo_label": lambda m, _: ls.pseudo_label(m, EXPLORE, REST, label="even"),
    "rationales": lambda m, _: ls.rationales(m, SOME, UNITS, do=ZERO, longest=1),
    "score_part": lambda m, _: ls.score_part(m, SOME[:24], SOME, metrics=["entropy"]),
    "segment": lambda m, _: ls.segment(
        m, SPLICED[:6], SPLICED[6:14], tune=SPLICED[14:], k=4, n_random=1
    ),
    "shortcuts": lambda m, _: ls.shortcuts(
        m, *SUMS.split(0.4, 0.3, 0.3, seed=0), metric="answer_probability", neurons=UNITS
    ),
    "sparse_probe": lambda m, _: ls.sparse_probe(m, EXPLORE, REST, metric="label:even", ks=(1, 2)),
    "stability": lambda m, _: ls.stability(
        lambda task: ls.rank(m, task, "entropy").top(3), SUMS, n=2, among=1024
    ),
    "token_logits": lambda m, _: [ls.token_logits(m, f"L0N{k}") for k in range(9)],
    "explain, described": lambda m, _: ls.explain(
        m, PLUS, UNITS, describer="features", n_others=9, n_permutations=0
    ),
    "capture_text": lambda m, at: capture_text(m, written(m), at / "table"),
    "NeuronSet.of": lambda m, _: ls.NeuronSet.of(UNITS, m, SUMS, licence="MIT"),
    "NeuronSet.check": lambda m, _: published(m).check(m),
    "NeuronSet.audit": lambda m, _: published(m).audit(
        m, SUMS, metric="answer_probability", do=ZERO
    ),
}

NOT_LISTED = {
    "edited": "a context, in which its user runs the passes",
    "endpoint": "its model is the name of one that a server runs",
    "equal_length_pairs": "counts tokens",
    "load_model": "opens a model; its one check is of a few tokens",
    "report": "draws results; what it asks of a model, `activating_examples` does",
    "with_features": "one token",
}
"""Public functions that are given a model and run no pass, or one that none has to wait for."""


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
    model = ls.load_model("arithmetic-small")
    for prepared in (published, circuit, written):  # what is run before Ctrl-C is waited for
        prepared(model)
    return model


def test_every_verb_is_interrupted_here_or_said_not_to_run() -> None:
    """A verb is a public function that is given a model, or what runs one."""
    gives = {"model", "analysis", "verb", "x"}
    public = [name for name in dir(ls) if inspect.isfunction(getattr(ls, name))]
    verbs = {n for n in public if gives & set(inspect.signature(getattr(ls, n)).parameters)}
    listed = {name.partition(",")[0] for name in VERBS} | NOT_LISTED.keys()
    assert len(verbs) > 30
    assert verbs - listed == set()
    assert not NOT_LISTED.keys() & VERBS.keys()


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
