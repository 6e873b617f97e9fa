"""What each verb makes of a family, judged by the plain model: right, refused, wrong or raw."""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

import lens_skills as ls
from lens_skills.data import halves
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from tests.models.families import FAMILIES, WHOLE_BLOCKS, build, quantise
from tests.models.plain_forward import Plain

LEADS = ("", "then ", "the boys and ", "When the girls have and the keys and ", "the girl was and ")
NOUNS = ("key", "author", "doctor", "boy")
OTHERS = ("cabinet", "girls", "actor", "judge")


@dataclass(frozen=True)
class Outcome:
    """What came of a verb.

    Attributes:
        kind: ``"right"``, ``"refused"``, ``"WRONG"`` or ``"RAW"``.
        why: The refusal's sentence, the numbers, or the exception.
    """

    kind: str
    why: str = ""


class Wrong(Exception):
    """A verb answered, and its numbers are not the plain model's."""


@dataclass(frozen=True)
class Bars:
    """How far a number may be from the plain model's: the rounding of a dtype.

    Attributes:
        nats: Of log-probabilities.
        r: Of a correlation.
        effect: Of an effect, as a share of the largest.
    """

    nats: float = 1e-3
    r: float = 1e-3
    effect: float = 2e-3


BARS = {
    "float32": Bars(),
    "bfloat16": Bars(nats=0.5, r=0.1, effect=0.25),
    "float16": Bars(nats=0.1, r=0.02, effect=0.05),
    "8bit": Bars(nats=0.25, r=0.05, effect=0.25),  # activations are quantised too, batch by batch
    "4bit": Bars(nats=0.05, r=0.02, effect=0.05),
}
"""What is equal to the plain model of the same weights.

The last bit of logits of about ten is 0.06 nats in bfloat16 and 0.008 in float16.
"""


def task() -> ls.Task:
    """16 pairs of prompts of 5 to 14 tokens, each in a group of its own."""
    found = []
    for k in range(16):
        noun, other, plural = NOUNS[k % 4], OTHERS[(k // 4 + k) % 4], k % 2
        lead = LEADS[k % 5]
        one, many = (f"{lead}the {noun}{s} near the {other}" for s in ("", "s"))
        words = (" are", " is") if plural else (" is", " are")
        found.append(ls.Example(
            id=f"e{k}", prompt=many if plural else one, corrupted=one if plural else many,
            answer=words[0], foil=words[1], labels={"plural": plural}, group=f"g{k}",
        ))  # fmt: skip
    return ls.Task("agreement of the tiny models", found)


@dataclass
class Case:
    """A family opened in one implementation, beside its plain model.

    Attributes:
        name: The family's.
        implementation: ``"hooked"`` or ``"bridge"``.
        tokenizer: The tiny one.
        dtype: Of the weights.
        bars: What is equal.
        quantised: ``"8bit"`` or ``"4bit"`` of bitsandbytes, or nothing.
        gaps: How far what was compared was.
    """

    name: str
    implementation: str
    tokenizer: Any
    dtype: torch.dtype = torch.float32
    bars: Bars = field(default_factory=Bars)
    quantised: str = ""
    plain: Any = None
    gaps: dict[str, float] = field(default_factory=dict)

    def _build(self) -> Any:
        if not self.quantised:
            return build(self.name, self.dtype)
        return quantise(build(self.name, **WHOLE_BLOCKS[self.name]), self.quantised)

    def __post_init__(self) -> None:
        self.examples = task()
        self.source = self._build()
        if self.plain is None and FAMILIES[self.name].task == "causal":
            self.plain = Plain(self._build(), self.tokenizer)
        self.few = ls.Task("few of them", list(self.examples)[:8])

    @cached_property
    def _opened(self) -> Any:
        try:
            return ls.load_model(
                self.source, tokenizer=self.tokenizer, implementation=self.implementation,
                dtype=self.dtype,
            )  # fmt: skip
        except Exception as error:  # every verb meets it
            return error

    @property
    def model(self) -> Any:
        if isinstance(self._opened, Exception):
            raise self._opened
        return self._opened

    @cached_property
    def pairs(self) -> ls.Task:
        """14 examples, the twin with the larger logit difference as the clean prompt.

        Seven groups test: effects are told, and no interval decides whether there is a total.
        """
        turned = []
        for example in list(self.examples)[:14]:
            twin = replace(example, prompt=example.corrupted, corrupted=example.prompt)
            more = self.plain.logit_diff(twin) > self.plain.logit_diff(example)
            turned.append(twin if more else example)
        return ls.Task("pairs", turned)

    @cached_property
    def units(self) -> list[tuple[int, int]]:
        """Two neurons of every layer that, in the plain model, has neurons; else of every layer."""
        layers = list(self.plain.neurons) or range(self.plain.n_layers)
        return [(layer, neuron) for layer in layers for neuron in (3, 20)]

    def same(self, what: str, found: Any, wanted: Any, bar: float) -> None:
        found, wanted = np.asarray(found, dtype=float), np.asarray(wanted, dtype=float)
        if found.shape != wanted.shape:
            raise Wrong(f"{what}: {found.shape} numbers for {wanted.shape}")
        gap = np.abs(found - wanted)
        self.gaps[what] = float(gap.max()) if gap.size else math.inf
        if not gap.size or not gap.max() <= bar:  # NaN is no agreement
            raise Wrong(f"{what}: off by {gap.max() if gap.size else 'all':.2g} (bar {bar:.2g})")

    # The verbs.

    def open(self) -> None:
        """Log-probabilities at every position, in one batch padded on either side."""
        adapter = as_adapter(self.model)
        rows = [self.plain.tokens(example.prompt) for example in self.examples][:6]
        wanted = [self.plain.run(row)[0] for row in rows]
        longest = max(map(len, rows))
        for side in ("left", "right"):
            tokens = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.zeros(len(rows), longest, dtype=torch.bool)
            for k, row in enumerate(rows):
                part = slice(longest - len(row), None) if side == "left" else slice(len(row))
                tokens[k, part], mask[k, part] = torch.tensor(row), True
            every = torch.arange(longest).expand(len(rows), -1)
            logits = adapter.forward(tokens, mask, readers={}, logits_at=every)
            assert logits is not None
            for k, logs in enumerate(wanted):
                found = logits[k].float().log_softmax(-1)[mask[k]][:, : logs.shape[1]]
                self.same(f"padded {side}, log p", found, logs, self.bars.nats)

    def score(self) -> None:
        """r of every neuron with a label and with the logit difference."""
        metrics = {"plural": "label:plural", "diff": ls.logit_diff()}
        none = {"n_permutations": 0, "n_controls": 0, "n_rotations": 0}
        scores = ls.score(self.model, self.examples, metrics=metrics, **none)
        passes = [self.plain.read(e.prompt) for e in self.examples]
        if set(self.plain.neurons) != set(range(self.plain.n_layers)):
            raise Wrong(f"scored, but only layers {sorted(self.plain.neurons)} have one MLP")
        layers = sorted(self.plain.neurons)
        seen = torch.cat([torch.stack([p[1][k][-1] for p in passes]) for k in layers], 1).double()
        diffs = torch.tensor([self.plain.logit_diff(e) for e in self.examples]).double()
        plural = torch.tensor([e.labels["plural"] for e in self.examples]).double()
        for name, metric in (("plural", plural), ("diff", diffs)):
            wanted = np.corrcoef(np.vstack([seen.numpy().T, metric.numpy()]))[-1, :-1]
            table = scores[name].frame().sort_values(["layer", "neuron"])
            found = table["r"].to_numpy()
            if len(found) != len(wanted):
                raise Wrong(f"{len(found)} neurons scored, {len(wanted)} there are")
            spread = seen.std(0) > 1e-2 * seen.std(0).median()
            self.same(f"r with {name}", found[spread], wanted[spread], self.bars.r)

    def _effects(self, units: list[tuple[int, int]]) -> list[float]:
        return [
            self.plain.logit_diff(e, dict.fromkeys(units, 0.0)) - self.plain.logit_diff(e)
            for e in self.few
        ]

    def _compare(self, what: str, found: Any, wanted: Any) -> None:
        if not np.abs(wanted).max() > 1e-3:
            raise AssertionError("the oracle found no effect to compare")
        bar = self.bars.effect * max(1.0, float(np.abs(wanted).max()))
        self.same(f"{what} (largest {np.abs(wanted).max():.2g})", found, wanted, bar)

    def _no_neurons(self) -> bool:
        return not self.plain.neurons

    def sweep(self) -> None:
        """Zero ablation of two neurons of every layer, one at a time."""
        found = ls.sweep(
            self.model, self.few, self.units, do=ls.ablate("zero"), metric=ls.logit_diff()
        )
        if self._no_neurons():
            raise Wrong("swept, but no layer has one MLP")
        self._compare("effects", found.total, [self._effects([unit]) for unit in self.units])

    def verify(self) -> None:
        """The same neurons' effects, and that of all together, as the verdict gives them."""
        found = ls.verify(
            self.model, self.few, self.units, do=ls.ablate("zero"), metric=ls.logit_diff(),
            controls=ls.controls(sets=2, important=0, neurons=2), also=(), unrelated=False,
            n_draws=50, exploratory=True, pairs=False, by=(), delta=0.1,
        )  # fmt: skip
        if self._no_neurons():
            raise Wrong("verified, but no layer has one MLP")
        wanted = [self._effects(units) for units in (*([unit] for unit in self.units), self.units)]
        self._compare("effects", found.effects.total, wanted)

    def edit(self) -> None:
        """What is written greedily while neurons are held at a value."""
        values = dict.fromkeys(self.units, 3.0)
        asked = self.examples[:5]
        with ls.edited(self.model, self.units, ls.clamp(to=3.0)):
            found = ls.generate(self.model, asked, temperature=0, max_new_tokens=6)
        if self._no_neurons():
            raise Wrong("edited, but no layer has one MLP")
        ends = frozenset([int(self.tokenizer.eos_token_id)])
        wanted = [self.plain.write(e.prompt, values, 6, ends) for e in asked]
        for k, example in enumerate(asked):
            gap = self.plain.preferred(example.prompt, values, wanted[k], list(found.tokens[k]))
            if gap > 2 * self.bars.nats:  # less is a tie that rounding decides
                raise Wrong(f"text {k}: {found.tokens[k]} for {wanted[k]}, worse by {gap:.2g} nats")

    def soft_prompt(self) -> None:
        """The loss on the held-out examples of the vectors that were trained."""
        held = list(self.examples)[8:]
        prompt = ls.fit_prompt(
            self.model, list(self.examples)[:8], n_tokens=2, epochs=1, held_out=held
        )
        reported = min(row["held_out_loss"] for row in prompt.curve[1:])  # after an epoch
        vectors = (prompt.suffix / self._embedding_scale()).to(self.dtype)
        wanted = np.mean([self.plain.loss(example, vectors) for example in held])
        self.same("loss", reported, wanted, self.bars.nats * max(1.0, float(wanted)))

    def _embedding_scale(self) -> float:
        """What blocks read over what the embedding module gives: some models multiply between."""
        tokens = torch.tensor([self.plain.tokens(self.examples[0].prompt)])
        kept: list[torch.Tensor] = []
        as_adapter(self.model).forward(
            tokens, torch.ones_like(tokens, dtype=torch.bool), logits_at=None,
            readers={"hook_embed": lambda read: kept.append(read.detach().clone())},
        )  # fmt: skip
        given = self.plain.model.get_input_embeddings()(tokens).float()
        return float((kept[0].float() / given).nanmedian()) if self.name != "bloom" else 1.0

    def circuit(self) -> None:
        """The answer's whole change, and the last MLP straight into the answer."""
        found = ls.circuit(
            self.model, self.pairs, n_edges=40, depth=1, n_random=40, n_draws=50,
            metric=ls.logit_diff(),
        )  # fmt: skip
        if self._no_neurons():
            raise Wrong("answered, but no layer has one MLP")
        groups = [example.group for example in self.pairs]
        examples = [self.pairs[k] for k in halves(groups, seed=0, even="groups")[1].tolist()]
        clean = [self.plain.logit_diff(example) for example in examples]
        twins = [replace(example, prompt=example.corrupted) for example in examples]
        total = np.mean([self.plain.logit_diff(twin) for twin in twins]) - np.mean(clean)
        bar = self.bars.effect * max(1.0, abs(float(total)))
        self.same("total", found.totals[0].total, total, bar)
        last = self.plain.n_layers - 1
        ours = [e for e in found.edges if e.sender.layer == last and e.sender.position == "-1"]
        ours = [e for e in ours if e.sender.kind in ("mlp", "neuron")]
        for edge in ours[:3]:  # the last MLP or its neurons straight into the answer
            moved = []
            for example, twin in zip(examples, twins, strict=True):
                neurons = self.plain.read(twin.prompt)[1][last][-1]
                which = range(len(neurons)) if edge.sender.kind == "mlp" else [edge.sender.index]
                values = {(last, k): float(neurons[k]) for k in which}
                moved.append(self.plain.logit_diff(example, values))
            self.same(
                f"{edge.sender.name}'s edge", edge.effect, np.mean(moved) - np.mean(clean), bar
            )


VERBS: dict[str, Callable[[Case], None]] = {
    "open": Case.open, "score": Case.score, "sweep": Case.sweep, "verify": Case.verify,
    "edit": Case.edit, "soft prompt": Case.soft_prompt, "circuit": Case.circuit,
}  # fmt: skip

LETTERS = {"right": "y", "refused": "n", "WRONG": "W", "RAW": "E"}
"""How an outcome is saved."""


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Progress bars, warnings and what libraries print are kept from the table."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def judge(case: Case, verb: str) -> Outcome:
    """What comes of the verb, whatever it does."""
    try:
        with silent():
            opened = case.model
            if case.plain is None:
                as_adapter(opened)
                raise Wrong(f"{type(opened).__name__}, though it does not write from left to right")
            VERBS[verb](case)
    except Wrong as wrong:
        return Outcome("WRONG", str(wrong))
    except LensSkillsError as error:
        return Outcome("refused", one_line(str(error)))
    except Exception as error:  # the table says of every family what a user would meet
        return Outcome("RAW", one_line(f"{type(error).__name__}: {error}"))
    return Outcome("right")


def one_line(text: str, most: int = 400) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= most else text[: most - 1] + "…"
