"""`pseudo_label`: labels for texts without any, from the model's own confident answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.activations.stream import evaluate
from lens_skills.data import Example, Value, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt, with_soft_prompt
from lens_skills.results import Result, provenance
from lens_skills.stats.intervals import share_interval
from lens_skills.tasks.task import Task

FEWEST = 4
"""So many examples must be labelled, and so many of them answered confidently."""

MOST_CHOICES = 50
"""Answers of the labelled examples that are taken for choices where a text names none."""

PSEUDO = "pseudo"
"""The covariate that tells what the model labelled (1) from what people did (0)."""


@dataclass(frozen=True, eq=False)
class PseudoLabels(Result):
    """What the model's own answers say of texts without labels, and how far they can be trusted.

    Attributes:
        label: The label.
        values: What each answer says of it.
        threshold: θ: the answer counts where its share among the choices is at least this.
        ids, answers, confidence: Of every text: the answer, and its share among the choices (0 to
            1); ``kept``: whether it counts.
        n_labelled: How many labelled examples θ was found on.
        n_confident: How many of these are confident by a θ that was found on the other groups;
            the accuracy is theirs.
        accuracy, low, high: Of the confident answers on the labelled, with a 95 % interval of
            groups (exact, with an effective sample size).
        chance: What guessing gives: one over the number of choices, or the share of the most
            frequent label, if larger.
        task: The labelled examples as they were, and the kept texts with the model's answer for
            theirs; ``where(pseudo=1)`` are the latter.
        provenance: Model, task.
    """

    label: str
    values: dict[str, Value]
    threshold: float
    ids: tuple[str, ...]
    answers: tuple[str, ...]
    confidence: Float[Tensor, " text"]
    kept: Bool[Tensor, " text"]
    n_labelled: int
    n_confident: int
    accuracy: float
    low: float
    high: float
    chance: float
    examples: tuple[dict[str, Any], ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n_saved(self) -> int:
        """How many labels nobody had to give."""
        return int(self.kept.sum())

    @property
    def task(self) -> Task:
        """The labelled examples, and the kept texts with the model's answers for theirs."""
        name = f"{self.provenance.get('task', 'examples')}"
        return Task(
            name,
            [Example(**{**row, "options": tuple(row["options"])}) for row in self.examples],
            f"{self.n_labelled} labelled, {self.n_saved} by the model",
        )

    def frame(self) -> pd.DataFrame:
        """One row per text: id answer confidence kept, and the label where it is kept."""
        says = [
            self.values.get(answer) if kept else None
            for answer, kept in zip(self.answers, self.kept.tolist(), strict=True)
        ]
        return pd.DataFrame(
            {
                "id": self.ids,
                "answer": self.answers,
                "confidence": self.confidence.numpy(),
                "kept": self.kept.numpy(),
                self.label: says,
            }
        )

    def __repr__(self) -> str:
        unread = sum(answer not in self.values for answer in self.answers)
        lines = [
            f"{self.label}: {self.n_saved:,} labels saved by {self.n_labelled} labels · "
            f"{len(self.ids):,} texts",
            f"  the model's own answer where its share of the choices is {self.threshold:.2f} or "
            f"more: {self.n_saved / len(self.ids):.0%} of the texts",
            f"  such answers are right in {self.accuracy:.0%} [{self.low:.0%}, {self.high:.0%}] of "
            f"{self.n_confident} labelled examples, each by a threshold found without its group; "
            f"chance {self.chance:.0%}",
        ]
        if unread:
            lines.append(
                f"  {unread:,} answers say nothing of {self.label}: no labelled example shows what"
            )
        lines.append(
            "  wrong pseudo-labels are the model's own errors: neurons then tell what it answers, "
            "not what is true; and what it is unsure of is missing"
        )
        return "\n".join(lines)


def pseudo_label(
    model: Any,
    labelled: Sequence[Example],
    unlabelled: Sequence[Example],
    *,
    label: str,
    accuracy: float = 0.9,
    values: Mapping[str, Value] | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
) -> PseudoLabels:
    """Labels for texts without any: the model's own answer, where it is confident enough.

    An answer is the likeliest of the choices; its confidence its share among them (joint
    probabilities, renormalised). θ is the lowest confidence at which the answers of the labelled
    examples that reach it are right in ``accuracy`` of them. How right such answers are is
    measured on the labelled examples too, each by the θ that the other groups give. Where that
    does not beat chance, nothing is labelled.

    Args:
        model: A HookedTransformer or TransformerBridge.
        labelled: A few examples with answer and label, `FEWEST` at least.
        unlabelled: Texts: their labels are never read, nor which of answer and foil is right.
        label: The label to give, which must follow from the answer.
        accuracy: What confident answers are to reach on the labelled examples: 0 to 1.
        values: What each answer says of the label. Default: what the labelled examples show, of
            which an answer seen once is believed; other answers then say nothing, and their texts
            are left out.
        prompt: A soft prompt to read with.
        chat: As in `score`.

    The choices of a text are its ``options``, else its answer and foil, else the answers of the
    labelled examples.

    Returns:
        `PseudoLabels`; its ``task`` is scored like any other.

    Raises:
        LensSkillsError: Fewer than four labelled examples, of one class only or without an
            answer; a label that does not follow from the answer; examples in both; answers that
            are not right often enough at any confidence, or no better than chance.

    Source: a simplified form of few-shot teachers that label the rest (arXiv 2109.08259): here the
    teacher is the model that is studied, nothing is trained, and unsure texts are left out instead
    of weighted.

    By simulation (half of the answers sure, the others a guess): a model that only guesses is
    believed in 2 % of draws of 20 labelled examples, one whose sure answers are right in 98 % in 65
    % of 20 and 99 % of 40; intervals of those cover in 94 to 95 %.
    Does not show: that the model is right. A neuron that goes with pseudo-labels goes with what
    the model answers.

    >>> import lens_skills as ls
    >>> model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic("+", options=True)
    >>> few, rest = task.split(0.2, 0.8)
    >>> found = ls.pseudo_label(model, few, rest, label="even",
    ...                         values={str(n): 1 - n % 2 for n in range(19)})
    >>> found.n_saved > 0 and found.low > found.chance
    True
    """
    if not 0 < accuracy <= 1:
        raise LensSkillsError(f"accuracy={accuracy}: a share above 0 and up to 1 is asked for.")
    _check(labelled, unlabelled, label)
    says = _values(labelled, label) if values is None else dict(values)
    seen = sorted({str(example.answer) for example in labelled})
    adapter = with_soft_prompt(model, prompt, chat)
    known, answers = _answers(adapter, labelled, seen)
    right = torch.tensor([a == e.answer for a, e in zip(answers, labelled, strict=True)])
    groups = field_of(labelled, "group")
    threshold = _threshold(known, right, accuracy)
    left_out = _confident_without_own_group(known, right, groups, accuracy)
    shares = pd.Series([e.labels[label] for e in labelled]).value_counts(normalize=True)
    n_choices = sum(len(choices(e, seen)) for e in labelled) / len(labelled)
    chance = max(1 / n_choices, float(shares.iloc[0]))
    if threshold is None or int(left_out.sum()) < FEWEST:
        raise LensSkillsError(
            f"the model is right in {float(right.double().mean()):.0%} of {len(labelled)} labelled "
            f"examples, and in {accuracy:.0%} of those it is sure of at no confidence that "
            f"{FEWEST} of them or more reach: its answers are no labels. `preflight` says whether "
            "it has the skill; label by hand, ask for less accuracy=, or take another model."
        )
    hits = right[left_out].double()
    theirs = [group for group, here in zip(groups, left_out.tolist(), strict=True) if here]
    low, high = map(float, share_interval(hits, theirs)) if len(set(theirs)) > 1 else (0.0, 1.0)
    if not low > chance:
        raise LensSkillsError(
            f"confident answers are right in {float(hits.mean()):.0%} [{low:.0%}, {high:.0%}] of "
            f"{len(hits)} labelled examples, and guessing in {chance:.0%}: nothing shows that they "
            "are better. Label more examples, or take a task that the model can do (`preflight`)."
        )
    confidence, answered = _answers(adapter, unlabelled, seen)
    kept = (confidence >= threshold) & torch.tensor([answer in says for answer in answered])
    if not bool(kept.any()):
        raise LensSkillsError(
            f"no answer to {len(unlabelled)} texts is confident (a share of {threshold:.2f} or "
            f"more) and says something of {label!r}. Say what answers mean: values={{answer: "
            "value}."
        )
    return PseudoLabels(
        label=label,
        values=says,
        threshold=threshold,
        ids=tuple(field_of(unlabelled, "id")),
        answers=tuple(answered),
        confidence=confidence,
        kept=kept,
        n_labelled=len(labelled),
        n_confident=len(hits),
        accuracy=float(hits.mean()),
        low=low,
        high=high,
        chance=chance,
        examples=tuple(
            map(_row, _given(labelled, unlabelled, answered, kept.tolist(), says, label, seen))
        ),
        provenance={
            **provenance(labelled, adapter),
            "label": label,
            "asked_accuracy": accuracy,
            "labelled_ids": list(field_of(labelled, "id")),
        },
    )


def _check(labelled: Sequence[Example], unlabelled: Sequence[Example], label: str) -> None:
    if len(labelled) < FEWEST:
        raise LensSkillsError(
            f"{len(labelled)} labelled examples: {FEWEST} at least are needed to find out when the "
            "model's answers can be trusted, 20 or more to trust them."
        )
    if len(unlabelled) == 0:
        raise LensSkillsError("no texts to label: the task is empty (after filtering?).")
    lacks = [e.id for e in labelled if e.answer is None or label not in e.labels]
    if lacks:
        raise LensSkillsError(
            f"example {lacks[0]!r} has no answer or no label {label!r} ({len(lacks)} of "
            f"{len(labelled)}): labelled examples have both."
        )
    if len({e.labels[label] for e in labelled}) < 2:
        raise LensSkillsError(
            f"the {len(labelled)} labelled examples are of one class only ({label}: "
            f"{labelled[0].labels[label]!r}): what answers mean shows where both are. Label some "
            "of the other."
        )
    n_groups = len(set(field_of(labelled, "group")))
    if n_groups < FEWEST:
        raise LensSkillsError(
            f"the {len(labelled)} labelled examples are of {n_groups} groups: {FEWEST} at least "
            "are needed. Spread them: tasks.few(task, n)."
        )
    both = set(field_of(labelled, "id")) & set(field_of(unlabelled, "id"))
    if both:
        raise LensSkillsError(
            f"{len(both)} examples are labelled and unlabelled both, such as "
            f"{min(both)!r}. Split them: few, rest = task.split(0.1, 0.9)."
        )


def _values(labelled: Sequence[Example], label: str) -> dict[str, Value]:
    """What each answer says of the label, as the labelled examples show."""
    says: dict[str, Value] = {}
    for example in labelled:
        answer, value = str(example.answer), example.labels[label]
        if says.setdefault(answer, value) != value:
            raise LensSkillsError(
                f"the label {label!r} does not follow from the answer: {answer!r} goes with "
                f"{says[answer]!r} and {value!r} among the labelled examples, so what the model "
                "answers cannot give it. Take a label that does, or the answer itself."
            )
    return says


def choices(example: Example, seen: Sequence[str]) -> tuple[str, ...]:
    """What a text may be answered: in an order that does not tell which is right."""
    if example.options:
        return tuple(sorted(example.options))
    if example.answer is not None and example.foil is not None:
        return tuple(sorted((example.answer, example.foil)))
    if not 2 <= len(seen) <= MOST_CHOICES:
        raise LensSkillsError(
            f"example {example.id!r} names no choices, and the labelled examples have "
            f"{len(seen)} different answers: give it options (2 to {MOST_CHOICES} are asked for)."
        )
    return tuple(seen)


def _answers(
    adapter: Any, examples: Sequence[Example], seen: Sequence[str]
) -> tuple[Float[Tensor, " text"], list[str]]:
    """The share of the likeliest choice of each text among its choices, and which it is."""
    asked = [
        Example(id=e.id, prompt=e.prompt, options=choices(e, seen), group=e.group, kind=e.kind)
        for e in examples
    ]

    def share(readout: Any, _: Sequence[Any]) -> Tensor:
        return torch.stack([one.log_probability.softmax(-1).max() for one in readout.options])

    def place(readout: Any, _: Sequence[Any]) -> Tensor:
        return torch.stack([one.log_probability.argmax() for one in readout.options])

    reads = frozenset({"options"})
    wanted = [Metric("share", share, reads), Metric("choice", place, reads)]
    found = evaluate(adapter, asked, wanted)
    which = found["choice"].long().tolist()
    return found["share"], [e.options[k] for e, k in zip(asked, which, strict=True)]


def _threshold(
    confidence: Float[Tensor, " text"], right: Bool[Tensor, " text"], accuracy: float
) -> float | None:
    """The lowest confidence that `FEWEST` reach, right in so many of them; None where none is."""
    order = confidence.argsort(descending=True)
    ordered, n = confidence[order], torch.arange(1, len(order) + 1)
    enough = (n >= FEWEST) & (right[order].double().cumsum(0) / n >= accuracy)
    # A threshold takes all examples of its confidence, so only the last of equals counts.
    enough[:-1] &= ordered[:-1] > ordered[1:]
    return float(ordered[enough][-1]) if bool(enough.any()) else None


def _confident_without_own_group(
    confidence: Float[Tensor, " text"],
    right: Bool[Tensor, " text"],
    groups: Sequence[str],
    accuracy: float,
) -> Bool[Tensor, " text"]:
    """Which examples reach the threshold that all other groups give."""
    kept = torch.zeros(len(groups), dtype=torch.bool)
    for group in sorted(set(groups)):
        own: Int[Tensor, " own"] = torch.tensor(
            [place for place, name in enumerate(groups) if name == group]
        )
        rest = torch.ones(len(groups), dtype=torch.bool)
        rest[own] = False
        threshold = _threshold(confidence[rest], right[rest], accuracy)
        if threshold is not None:
            kept[own] = confidence[own] >= threshold
    return kept


def _given(
    labelled: Sequence[Example],
    unlabelled: Sequence[Example],
    answers: Sequence[str],
    kept: Sequence[bool],
    says: Mapping[str, Value],
    label: str,
    seen: Sequence[str],
) -> list[Example]:
    """The labelled examples, and the kept texts with the model's answer for theirs."""
    made = [replace(e, covariates={**e.covariates, PSEUDO: 0}) for e in labelled]
    for example, answer, here in zip(unlabelled, answers, kept, strict=True):
        if here:
            others = [one for one in choices(example, seen) if one != answer]
            made.append(
                replace(
                    example,
                    answer=answer,
                    foil=others[0] if len(others) == 1 else None,
                    options=tuple(example.options or (answer, *others)),
                    labels={label: says[answer]},
                    covariates={**example.covariates, PSEUDO: 1},
                )
            )
    return made


def _row(example: Example) -> dict[str, Any]:
    names = ("id", "prompt", "answer", "foil", "corrupted", "group", "kind")
    row: dict[str, Any] = {name: getattr(example, name) for name in names}
    row |= {name: dict(getattr(example, name)) for name in ("labels", "covariates")}
    return {**row, "options": list(example.options)}
