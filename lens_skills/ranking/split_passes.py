"""`SplitPasses`: what a method that runs the model itself is given, and how its time is counted."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lens_skills.activations import Metric
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.attribution import ActivationGradients, slopes_of
from lens_skills.models import ModelAdapter
from lens_skills.ranking.contrasts import Contrast, parse_contrasts
from lens_skills.ranking.detectors import AnswerContributions
from lens_skills.ranking.own_answers import read_own_answers
from lens_skills.ranking.target_statistics import FEWEST, Target


@dataclass(eq=False)
class Spent:
    """Seconds a method took, those of shared passes that were made before among them."""

    seconds: float = 0.0


@dataclass(eq=False)
class SplitPasses:
    """The split a method ranks on, and passes over it that methods share.

    A shared pass is made once; its time is counted for every method that asks for it.

    Attributes:
        reader: The split, the site and the position.
        target: What is ranked by.
        metric: The model's metric, for methods that differentiate it or measure edits on it.
        asked: The other tasks, as the user gave them.
        seed: Of what is drawn at random.
    """

    reader: ActivationReader
    target: Target
    metric: Metric | None
    asked: Any
    seed: int
    _made: dict[str, tuple[Any, float]] = field(default_factory=dict)
    _used: dict[str, float] = field(default_factory=dict)
    _new: float = 0.0

    @property
    def adapter(self) -> ModelAdapter:
        """The model."""
        assert self.reader.adapter is not None, "a table has no passes"
        return self.reader.adapter

    @property
    def examples(self) -> Sequence[Example]:
        """The examples ranked on."""
        return self.reader.examples

    def gradients(self) -> ActivationGradients:
        """Of the metric, by every unit of the site, at the position."""
        return self._shared("gradients", self._own_gradients)

    def contrasts(self) -> tuple[Contrast, ...]:
        """The other tasks, the neutral text the last.

        Raises:
            LensSkillsError: See `parse_contrasts`; a position that other tasks do not have.
        """
        if self.reader.position not in ("last", -1):
            raise LensSkillsError(
                f"other tasks are read at the last token, but neurons are ranked at position "
                f"{self.reader.position!r}. Rank at position='last', or by a method without "
                "contrasts."
            )
        assert self.metric is not None, "a method of contrasts without a metric"
        return parse_contrasts(self.asked, self.metric, ranked=self.examples)

    def contrast_gradients(self) -> tuple[ActivationGradients, ...]:
        """Of each contrast's own metric, on its own examples; in the order of `contrasts`."""
        return self._shared("contrasts", self._contrast_gradients)

    def answers(self) -> AnswerContributions:
        """What the model answers by itself, each neuron's contributions, and the target's class.

        Raises:
            LensSkillsError: See `read_own_answers`; too few answers of a class.
        """
        return self._shared("answers", self._own_answers)

    @contextmanager
    def timed(self) -> Iterator[Spent]:
        """What runs inside, and the shared passes that it asks for, as seconds."""
        spent, start = Spent(), time.perf_counter()
        self._used, self._new = {}, 0.0
        yield spent
        own = time.perf_counter() - start - self._new
        spent.seconds = own + sum(self._used.values())

    def _shared(self, name: str, make: Any) -> Any:
        if name not in self._made:
            start = time.perf_counter()
            found = make()
            self._made[name] = found, time.perf_counter() - start
            self._new += self._made[name][1]
        found, seconds = self._made[name]
        self._used[name] = seconds
        return found

    def _own_gradients(self) -> ActivationGradients:
        assert self.metric is not None, "a method of gradients without a metric"
        reader = self.reader
        return slopes_of(
            self.adapter, self.examples, self.metric, reader.site, position=reader.position
        )

    def _own_answers(self) -> AnswerContributions:
        own = read_own_answers(self.adapter, self.examples, layers=self.reader.site.layers)
        high = self.target.values[own.kept] == 1
        fewest = min(int(high.sum()), int((~high).sum()))
        if fewest < FEWEST:
            raise LensSkillsError(
                f"the model answers {len(own.kept)} of {len(self.examples)} examples, {fewest} of "
                f"one class of {self.target.name!r}; {FEWEST} at least are needed. Use a larger "
                "split."
            )
        groups = field_of(self.examples, "group")
        rows = own.kept.tolist()
        return AnswerContributions(own, high, [groups[place] for place in rows], self.seed)

    def _contrast_gradients(self) -> tuple[ActivationGradients, ...]:
        return tuple(
            slopes_of(
                contrast.adapter(self.adapter),
                contrast.examples,
                contrast.metric,
                self.reader.site,
                position="last",
            )
            for contrast in self.contrasts()
        )
