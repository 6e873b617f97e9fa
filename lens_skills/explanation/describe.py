"""Sentences on where neurons fire, from a describer, judged on held-out texts: for `explain`.

A describer sees the half of the groups that features are ranked on; a judge is given the sentence
and a text of the other half, and says yes or no.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.excerpts import Excerpt
from lens_skills.data import Example, in_turns
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.conjunctions import SentenceReader, best_conjunctions, in_words
from lens_skills.explanation.descriptions import Description, ShuffledScores, answers_frame
from lens_skills.explanation.feature_bank import FeatureBank
from lens_skills.generation.endpoint import Endpoint, NoAnswer, Nonsense
from lens_skills.progress import progress
from lens_skills.stats.correlation import area_interval, area_under_curve
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p
from lens_skills.tasks.word_lists import words

FEATURES = "features"
"""The describer and judge that need no network: the feature bank."""

DESCRIBE = (
    "You explain what a neuron of a language model reacts to. You are shown texts on which it is "
    "strong and similar texts on which it is weak, each with its tokens and the neuron's "
    "activation at every one. Answer with one sentence that begins with 'Fires where' and says "
    "what the strong texts have that the weak ones lack, so that a reader can tell for any other "
    "text of this kind whether the neuron is strong. At most 40 words, and nothing else."
)

DESCRIBE_AGAIN = (
    "That was not one sentence of at most 40 words. Answer with that sentence and nothing else."
)

JUDGE = (
    "You are given a sentence that says on which texts a neuron of a language model fires, and one "
    "text. Decide from the sentence alone whether the neuron fires on the text. Answer with one "
    "word, yes or no."
)

JUDGE_AGAIN = "That was neither yes nor no. Answer with one word: yes or no."

_MOST_LETTERS = 400  # of a sentence; what is longer is a page
_SHOWN = 8  # strong texts, and as many weak ones, that a describer sees
_TOKENS = 48  # of one of them, around the token that was read
_JUDGED = 100  # held-out texts that a judge other than the bank is asked about
_CEILING, _FEW = 0.95, 19
_WORDS = {"yes": True, "no": False, "true": True, "false": False}

Answers = list[bool | None]


def check_describer(describer: Any, judge: Any, n_texts: int | None) -> Any:
    """The judge; raises where a describer or a judge is none, or one is there without the other."""
    for name, given in (("describer", describer), ("judge", judge)):
        known = given is None or (isinstance(given, str) and given == FEATURES)
        if known or isinstance(given, Endpoint) or callable(given):
            continue
        raise LensSkillsError(
            f"{name}= is {FEATURES!r}, an endpoint (ls.endpoint(url, model=…)) or a function, not "
            f"{given!r:.60}."
        )
    if describer is None and judge is not None:
        raise LensSkillsError(
            "judge= labels texts by a describer's sentence, and there is none: say describer= too."
        )
    if n_texts is not None and n_texts < 1:
        raise LensSkillsError(f"n_texts= is how many texts are judged, 1 or more, not {n_texts}.")
    if judge is not None:
        return judge
    return describer if isinstance(describer, Endpoint) else FEATURES


@dataclass(frozen=True, eq=False)
class Neurons:
    """Neurons that are described, or that stand beside them in the null.

    Attributes:
        names: Of each.
        layers: Of each.
        activations: On every example.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    activations: Float[Tensor, "neuron row"]


@dataclass(frozen=True, eq=False)
class Described:
    """What `describe` hands back.

    Attributes:
        descriptions: By the names of the neurons.
        answers: See `Explanations.answers`.
        notes: What a reader must know.
        about: Who described and judged, and what it took.
    """

    descriptions: Mapping[str, Description]
    answers: pd.DataFrame
    notes: tuple[str, ...]
    about: Mapping[str, Any]


def describe(
    neurons: Neurons,
    others: Neurons,
    task: Sequence[Example],
    bank: FeatureBank,
    values: pd.DataFrame,
    groups: Sequence[str],
    parts: tuple[Int[Tensor, " fitted"], Int[Tensor, " held"]],
    excerpts: Callable[[Sequence[Sequence[int]]], Sequence[Sequence[Excerpt]]],
    *,
    describer: Any,
    judge: Any,
    n_texts: int | None,
    position: str,
    seed: int,
) -> Described:
    """Sentences for neurons, their scores on the held-out half, and both nulls.

    Args:
        neurons: To be described; each varies on both halves.
        others: Other neurons of the same layers, for the null.
        task: The examples.
        bank: Of features that vary on both halves.
        values: Of the bank's features, on every example.
        groups: Of the examples.
        parts: The rows a describer may see, and those that are judged.
        excerpts: The wanted examples of each neuron, token by token.
        describer, judge: ``"features"``, an endpoint or a function.
        n_texts: How many texts are judged; None for all, or 100 of a judge that is asked.
        position: Where the neurons are read, in words.
        seed: Of the draws of texts, and of the folds of conjunctions.
    """
    fitted = parts[0]
    ends = [_end(row[fitted]) for row in neurons.activations]
    signed = _signed(neurons.activations, ends)
    other_signed = _signed(others.activations, [_end(row[fitted]) for row in others.activations])
    own_groups = [groups[int(row)] for row in fitted]
    for each in (describer, judge):
        if isinstance(each, Endpoint):
            each.start()
    if describer == FEATURES:
        seen = values.iloc[fitted.numpy()].reset_index(drop=True)
        said = _from_bank(signed[:, fitted], bank, seen, own_groups, seed)
        beside = _from_bank(other_signed[:, fitted], bank, seen, own_groups, seed)
    else:
        said = _asked(describer, signed, fitted, task, excerpts, ends, position)
        beside = []
    rows = _judged_rows(parts[1], groups, n_texts, judge, seed)
    reader = _Judge(judge, bank, values, task, rows)
    asked = list(dict.fromkeys(sentence for sentence, _ in said if sentence))
    judged = {
        sentence: reader.answers(sentence)
        for sentence in progress(asked, len(asked), "judge", "sentences")
    }
    if isinstance(judge, str):  # asked of nobody, so that the null costs nothing
        judged |= {s: reader.answers(s) for s, _ in beside if s and s not in judged}
    scorer = _Scorer(rows, [groups[int(row)] for row in rows], judged)
    found = {}
    for place, name in enumerate(neurons.names):
        sentence, note = said[place]
        same = [k for k, layer in enumerate(others.layers) if layer == neurons.layers[place]]
        # Sentences of other neurons of the layer; a describer that is asked has none of those.
        pool = [beside[k][0] for k in same] if beside else [s for s, _ in said]
        found[name] = (
            scorer.description(signed[place], sentence, ends[place], pool, other_signed[same])
            if sentence
            else Description("", ends[place], note=note)
        )
    found = _with_q(found)
    answers = {
        name: judged[one.sentence][0] for name, one in found.items() if one.sentence in judged
    }
    ids = [task[int(row)].id for row in rows]
    about = {"describer": _about(describer), "judge": _about(judge)}
    table = answers_frame(ids, scorer.groups, answers)
    return Described(found, table, tuple(_notes(found, judge, len(rows))), about)


# ── describers ───────────────────────────────────────────────────────────────────────────────────


def _end(activation: Float[Tensor, " row"]) -> str:
    """Of which end a neuron is told: the lowest where it mostly fires below 0."""
    n = max(1, min(5, len(activation) // 2))
    top, bottom = activation.topk(n).values, activation.topk(n, largest=False).values
    return "lowest" if float(top.sum()) < -float(bottom.sum()) else "highest"


def _signed(
    activations: Float[Tensor, "neuron row"], ends: Sequence[str]
) -> Float[Tensor, "neuron row"]:
    signs = torch.tensor([-1.0 if end == "lowest" else 1.0 for end in ends], dtype=torch.float64)
    return activations * signs[:, None]


def _from_bank(
    activations: Float[Tensor, "neuron row"],
    bank: FeatureBank,
    values: pd.DataFrame,
    groups: Sequence[str],
    seed: int,
) -> list[tuple[str, str]]:
    """The bank's sentence for each neuron, or why there is none."""
    none = (
        f"no feature in the bank fits: the best conjunction of its {len(bank)} features, grown on "
        "half of the groups that may be seen, does not go with the activation on the other half"
    )
    grown = best_conjunctions(activations, bank, values, groups, seed=seed)
    found: list[tuple[str, str]] = []
    for terms in progress(grown, len(activations), "describe", "neurons"):
        found.append(("", none) if terms is None else (in_words(terms), ""))
    return found


def _asked(
    describer: Any,
    signed: Float[Tensor, "neuron row"],
    fitted: Int[Tensor, " fitted"],
    task: Sequence[Example],
    excerpts: Callable[[Sequence[Sequence[int]]], Sequence[Sequence[Excerpt]]],
    ends: Sequence[str],
    position: str,
) -> list[tuple[str, str]]:
    """The sentences of a describer that is shown examples, or why there are none."""
    wanted = []
    for row in signed:
        strong, weak = contrasting(row[fitted], [task[k].prompt for k in fitted.tolist()], _SHOWN)
        wanted.append([int(fitted[place]) for place in (*strong, *weak)])
    shown, found = excerpts(wanted), []
    for some, end in progress(zip(shown, ends, strict=True), len(shown), "describe", "neurons"):
        if end == "lowest":  # a describer reads strong as a large number
            some = [_turned(one) for one in some]
        half = (len(some) + 1) // 2
        found.append(_sentence(describer, tuple(some[:half]), tuple(some[half:]), position))
    return found


def contrasting(
    activation: Float[Tensor, " row"], prompts: Sequence[str], n: int
) -> tuple[list[int], list[int]]:
    """The places of the strongest examples, and of weak ones that are like them in words.

    The strongest n of different prompts; for each in turn, of the weaker half the prompt that
    shares the largest part of their words with it and is not taken.

    >>> texts = ["a red cat", "a red dog", "no cat", "the sea"]
    >>> contrasting(torch.tensor([3.0, 0.2, 2.0, 0.1]), texts, 1)
    ([0], [1])
    """
    order = [int(place) for place in activation.argsort(descending=True, stable=True)]
    middle = (len(order) + 1) // 2
    first: dict[str, int] = {}
    for place in order[:middle]:
        first.setdefault(prompts[place], place)
    strong = list(first.values())[:n]
    weak = {prompts[place]: place for place in order[middle:] if prompts[place] not in first}
    said = {prompt: set(words(prompt)) for prompt in (*first, *weak)}
    chosen: list[int] = []
    for place in strong:
        if weak:
            near = [(_alike(said[prompts[place]], said[text]), -at) for text, at in weak.items()]
            chosen.append(-max(near)[1])
            del weak[prompts[chosen[-1]]]
    return strong, chosen


def _alike(first: set[str], second: set[str]) -> float:
    return len(first & second) / max(len(first | second), 1)


def _turned(one: Excerpt) -> Excerpt:
    return replace(one, activation=-one.activation, values=tuple(-v for v in one.values))


def _sentence(
    describer: Any, strong: tuple[Excerpt, ...], weak: tuple[Excerpt, ...], position: str
) -> tuple[str, str]:
    if isinstance(describer, Endpoint):
        messages = [
            {"role": "system", "content": DESCRIBE},
            {"role": "user", "content": evidence(strong, weak, position)},
        ]
        try:
            return describer.answer(messages, read_sentence, DESCRIBE_AGAIN), ""
        except NoAnswer as error:
            return "", f"the describer gave none: {error}"
    try:
        return read_sentence(describer(strong, weak)), ""
    except Nonsense as error:
        return "", f"the describer gave none: {error}"
    except Exception as error:  # of the user's own function: the other neurons are still described
        return "", f"the describer failed: {type(error).__name__}: {error}"


def read_sentence(said: Any) -> str:
    """A describer's sentence on one line.

    Raises:
        Nonsense: No text, nothing, no letters, several lines, or a page.

    >>> read_sentence(' "Fires where it rains." ')
    'Fires where it rains.'
    """
    if not isinstance(said, str):
        raise Nonsense(f"{said!r:.60} of type {type(said).__name__} is no text")
    text = said.strip().strip("\"'“”`").strip()
    if not text:
        raise Nonsense("it said nothing")
    if not any(letter.isalpha() for letter in text):
        raise Nonsense(f"there is no word in {text[:60]!r}")
    if len(text) > _MOST_LETTERS or "\n" in text:
        raise Nonsense(
            f"one sentence of at most {_MOST_LETTERS} letters was asked for, not {len(text):,} "
            f"letters on {text.count(chr(10)) + 1} lines: {text[:40]!r}…"
        )
    return " ".join(text.split())


def evidence(strong: Sequence[Excerpt], weak: Sequence[Excerpt], position: str) -> str:
    """What an endpoint reads about a neuron: texts, tokens and activations."""
    lines = [f"The neuron is read at: {position}."]
    for title, some in (("Strong", strong), ("Weak", weak)):
        lines.append(f"\n{title} texts:")
        for number, one in enumerate(some, 1):
            lines.append(f"{number}. activation {one.activation:.2f}: {one.prompt!r}")
            if one.tokens:
                pairs = [[token, round(v, 2)] for token, v in _around(one)]
                lines.append(f"   tokens: {json.dumps(pairs, ensure_ascii=False)}")
    return "\n".join(lines)


def _around(one: Excerpt) -> list[tuple[str, float]]:
    """The tokens up to the one that was read, or to the last."""
    pairs = list(zip(one.tokens, one.values, strict=True))
    stop = len(pairs) if one.read is None else min(len(pairs), one.read + _TOKENS // 4)
    return pairs[max(0, stop - _TOKENS) : max(stop, _TOKENS)][:_TOKENS]


# ── judges ───────────────────────────────────────────────────────────────────────────────────────


def _judged_rows(
    held: Int[Tensor, " held"], groups: Sequence[str], n: int | None, judge: Any, seed: int
) -> Int[Tensor, " judged"]:
    """All held-out rows, or so many of them at random, one of every group before a second."""
    n = n or (len(held) if judge == FEATURES else _JUDGED)
    if n >= len(held):
        return held
    order = held[torch.from_numpy(np.random.default_rng(seed).permutation(len(held)))].tolist()
    return torch.tensor(sorted(in_turns(order, lambda row: groups[row])[:n]))


class _Judge:
    """Yes or no of each judged text, by the sentence alone."""

    def __init__(
        self,
        judge: Any,
        bank: FeatureBank,
        values: pd.DataFrame,
        task: Sequence[Example],
        rows: Int[Tensor, " judged"],
    ) -> None:
        self.judge, self.bank = judge, bank
        self.values = values.iloc[rows.numpy()].reset_index(drop=True)
        self.prompts = [task[row].prompt for row in rows.tolist()]
        self.reader = SentenceReader(bank)

    def answers(self, sentence: str) -> tuple[Answers, str]:
        """One answer per text, None where there is none, and why."""
        if self.judge == FEATURES:
            terms = self.reader.read(sentence)
            if not terms:
                why = "no feature in the bank fits: the sentence has none of its names in it"
                return [None] * len(self.prompts), why
            return list(self.reader.holds(terms, self.values)), ""
        found: Answers = []
        reasons: dict[str, None] = {}
        for prompt in self.prompts:
            try:
                found.append(self._one(sentence, prompt))
            except (NoAnswer, Nonsense) as error:
                found.append(None)
                reasons[str(error)] = None
            except Exception as error:  # of the user's own function
                found.append(None)
                reasons[f"{type(error).__name__}: {error}"] = None
        why = "; ".join(list(reasons)[:2]) + ("; …" if len(reasons) > 2 else "")
        return found, why

    def _one(self, sentence: str, prompt: str) -> bool:
        if not isinstance(self.judge, Endpoint):
            return read_yes_no(self.judge(sentence, prompt))
        about = f"Sentence: {sentence}\n\nText, between the lines:\n-----\n{prompt}\n-----"
        messages = [{"role": "system", "content": JUDGE}, {"role": "user", "content": about}]
        return self.judge.answer(messages, read_yes_no, JUDGE_AGAIN)


def read_yes_no(said: Any) -> bool:
    """A judge's answer.

    Raises:
        Nonsense: Neither yes nor no.

    >>> read_yes_no("Yes."), read_yes_no("no, it does not"), read_yes_no(True)
    (True, False, True)
    """
    if isinstance(said, bool | np.bool_) or (isinstance(said, int | float) and said in (0, 1)):
        return bool(said)
    first = words(said)[:1] if isinstance(said, str) else []
    if not first or first[0] not in _WORDS:
        raise Nonsense(f"neither yes nor no: {said!r:.60}")
    return _WORDS[first[0]]


# ── scores ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Sentences against neurons on the judged rows."""

    rows: Int[Tensor, " judged"]
    groups: list[str]
    judged: Mapping[str, tuple[Answers, str]]

    def description(
        self,
        signed: Float[Tensor, " row"],
        sentence: str,
        end: str,
        pool: Sequence[str],
        others: Float[Tensor, "other row"],
    ) -> Description:
        """A sentence's score on its own neuron, and both nulls."""
        answers, why = self.judged[sentence]
        given = torch.tensor([answer is not None for answer in answers])
        truth = torch.tensor([answer is True for answer in answers])[given]
        n_yes, n_no = int(truth.sum()), int((~truth).sum())
        n_unanswered = len(answers) - len(truth)
        made = Description(
            sentence, end, n_yes=n_yes, n_no=n_no, n_unanswered=n_unanswered, note=why
        )
        if not (n_yes and n_no):
            said = f"the judge says {'yes' if n_yes else 'no'} of every text"
            if not len(truth):
                said = "the judge answered for no text"
            return replace(made, note=f"{said}: no score" + (f" ({why})" if why else ""))
        own = signed[self.rows][given]
        auroc = float(area_under_curve(own, truth.double()))
        groups = [g for g, has in zip(self.groups, given.tolist(), strict=True) if has]
        low, high = np.nan, np.nan
        if len(set(groups)) >= FEWEST_GROUPS:
            low, high = area_interval(own, truth, groups)
        theirs = self._areas(signed[self.rows], pool, answers)
        beside = others[:, self.rows][:, given]
        varied = beside.amax(1) > beside.amin(1)
        columns = area_under_curve(beside[varied].T.contiguous(), truth.double())
        sentences = _null("other neurons' sentences", theirs, auroc)
        neurons = _null("other neurons", columns.reshape(-1), auroc)
        p = [null.p for null in (sentences, neurons) if null is not None]
        return replace(
            made,
            auroc=auroc,
            low=None if np.isnan(low) else low,
            high=None if np.isnan(high) else high,
            sentences=sentences,
            neurons=neurons,
            p=max(p) if p else None,
        )

    def _areas(
        self, own: Float[Tensor, " judged"], pool: Sequence[str], answers: Answers
    ) -> Float[Tensor, " sentence"]:
        """AUROCs of the sentences of other neurons that do not say the same of every text."""
        found = []
        for sentence in pool:
            theirs, _ = self.judged.get(sentence, ([], ""))
            if not theirs or theirs == answers:
                continue
            given = torch.tensor([answer is not None for answer in theirs])
            truth = torch.tensor([answer is True for answer in theirs])[given]
            if truth.any() and not truth.all():
                found.append(float(area_under_curve(own[given], truth.double())))
        return torch.tensor(found, dtype=torch.float64)


def _null(of: str, scores: Float[Tensor, " shuffled"], own: float) -> ShuffledScores | None:
    if not len(scores):
        return None
    largest = scores.quantile(_CEILING) if len(scores) >= _FEW else scores.max()
    p = float(rank_p(torch.tensor([own], dtype=torch.float64), scores)[0])
    return ShuffledScores(of, scores, float(scores.mean()), float(largest), p)


def _with_q(found: Mapping[str, Description]) -> dict[str, Description]:
    tested = [name for name, one in found.items() if one.p is not None]
    if not tested:
        return dict(found)
    p = torch.tensor([float(found[name].p or 0) for name in tested], dtype=torch.float64)
    q = dict(zip(tested, false_discovery_q(p).tolist(), strict=True))
    return {name: replace(one, q=q.get(name)) for name, one in found.items()}


def _notes(found: Mapping[str, Description], judge: Any, n_texts: int) -> Iterator[str]:
    silent = [name for name, one in found.items() if not one.sentence]
    if silent:
        yield f"{len(silent)} of {len(found)} neurons have no sentence: {', '.join(silent[:4])}" + (
            ", …" if len(silent) > 4 else ""
        )
    missing = sum(one.n_unanswered for one in found.values())
    if missing:
        whole = n_texts * sum(bool(one.sentence) for one in found.values())
        again = (
            " The same call asks for what is missing alone, in this session or with cache= of the "
            "endpoint."
            if isinstance(judge, Endpoint)
            else ""
        )
        yield f"{missing:,} of {whole:,} answers of the judge are missing, and left out.{again}"
    coarse = [
        len(null.scores) for one in found.values() for null in one.nulls if len(null.scores) < _FEW
    ]
    if coarse:
        yield (
            f"the smallest null has {min(coarse)} shuffled sentence{'s' * (min(coarse) != 1)}: no "
            f"p of fewer than {_FEW} is 0.05 or less. Describe more neurons together"
        )


def _about(who: Any) -> Any:
    if isinstance(who, Endpoint):
        return who.report()
    return who if isinstance(who, str) else getattr(who, "__name__", type(who).__name__)
