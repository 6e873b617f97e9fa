"""The published recipes, each followed and each tried: what it names, and what that does.

Every function makes a `Finding`. What counts as *holds* is written down in `CLAIMS` before any
trial, and `Finding.says` is made from the numbers alone.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from claims.texts import (
    CAPITALS,
    LANGUAGES,
    TOKEN_CLASSES,
    WORDINGS,
    capitals,
    code,
    sentences,
)
from claims.trial import ANSWER, Trial, random_set, try_sets

import lens_skills as ls
from lens_skills.activations import DEFAULT_SITE, evaluate
from lens_skills.activations.components import parse_components
from lens_skills.activations.forward import encode_examples
from lens_skills.activations.locations import find_site
from lens_skills.diagnostics.regulators import REGULATOR, weight_columns
from lens_skills.interventions.effects import measure_effects
from lens_skills.models import with_soft_prompt
from lens_skills.plotting import Drawing, figures
from lens_skills.ranking.path_methods import PathInputs, expected_changes
from lens_skills.stats.effect_tests import cluster_interval

HOLDS, PARTLY, FAILS, UNTRIED = "holds", "holds in part", "does not hold", "could not be tried"


@dataclass(frozen=True)
class Claim:
    """A published claim.

    Attributes:
        says: In one sentence.
        source: Authors, year and number.
        recipe: How its neurons are found.
        rule: What the trial counts as holding, fixed beforehand.
    """

    says: str
    source: str
    recipe: str
    rule: str


CLAIMS = {
    "languages": Claim(
        "Neurons that fire for one language only carry it: without them the model loses that "
        "language and hardly any other.",
        "Tang et al. 2024, arXiv 2402.16438",
        "the 1 % of all neurons with the lowest entropy of firing rates over five languages, among "
        "those that fire often (LAPE); each goes to the language it fires for most; set to zero at "
        "every token",
        "for a language: its set lowers the log-probability of the next word in its own "
        "sentences, more than 19 random sets of the same layers (p ≤ .05), and hurts the "
        "other languages less (95 % interval of the difference)",
    ),
    "facts": Claim(
        "A few neurons hold a fact: silencing them makes it less likely, doubling them more, and "
        "other facts keep their probability.",
        "Dai et al. 2022, arXiv 2104.08696",
        "integrated gradients of the answer's probability from silence to the activation (10 "
        "steps) at the last token; at least 0.2 of the largest, in each of three wordings of the "
        "same fact; tried in a fourth wording, set to zero or doubled at the last token",
        "over facts: the own set lowers the log-probability of its capital more than random "
        "sets of the same layers and more than it lowers other capitals, and doubling raises it "
        "(95 % intervals over countries)",
    ),
    "entropy": Claim(
        "Neurons of the last layers that write much and into no token set the model's confidence "
        "through the final norm, on any text.",
        "Stolfo et al. 2024, arXiv 2406.16254",
        "the six neurons of the last two layers with the lowest variance of their direct effect "
        "over the vocabulary, among the quarter with the largest output weights",
        "for a neuron: its ablation moves the entropy on neutral text more than 95 % of random "
        "neurons of its layer do, and more than half of that goes through the final norm (lower "
        "end of the interval); beside it six random neurons of the same layers",
    ),
    "code tokens": Claim(
        "A code model has neurons for kinds of token (numbers, strings, keywords …).",
        "Sharma et al. 2023, arXiv 2305.00875 (models trained on code there)",
        "the ten neurons with the largest distance of class means (probeless), class against "
        "rest, on one half of the files of Python's standard library",
        "for a class: the strongest neuron tells it from the rest on the other files (AUROC "
        "beyond 200 random neurons), and its ten neurons, mean-ablated at the last token, lower "
        "the log-probability of the next token after such tokens, beyond random sets and more than "
        "elsewhere",
    ),
    "skill neurons": Claim(
        "Disturbing the neurons that predict a task's label hurts the task, far more than "
        "disturbing random neurons of the same layers.",
        "Wang et al. 2022, arXiv 2211.07349 (RoBERTa with prompt tuning there)",
        "the ten neurons of largest predictivity for the label; mean-ablated at the last token",
        "for a task: its set lowers the logit difference, beyond 19 random sets of the same "
        "layers, and hurts the other tasks less",
    ),
    "task-specific neurons": Claim(
        "Deactivating the neurons most sensitive to a task hurts that task most.",
        "Leng & Xiong 2024, arXiv 2407.06488",
        "the ten neurons of largest mean |activation × gradient| (Taylor) of the logit difference; "
        "set to zero at the last token",
        "as for skill neurons",
    ),
}


@dataclass
class Finding:
    """What a trial says of a claim.

    Attributes:
        word: One of `HOLDS`, `PARTLY`, `FAILS`, `UNTRIED`.
        says: The numbers in a sentence or two.
        table: One row per set, neuron or fact.
        drawing: What there is to see, or None.
    """

    word: str
    says: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    drawing: Drawing | None = None


@dataclass(frozen=True)
class Sizes:
    """How much is read and tried."""

    meanings: int = 24
    held: int = 8
    countries: int = 40
    files: int = 24
    per_class: int = 4
    examples: int = 160
    tried: int = 32
    n_random: int = 19
    texts: int = 24
    n_controls: int = 60


QUICK = Sizes(16, 8, 12, 20, 1, 40, 8, 3, 8, 20)


def word_of(n_good: int, n: int) -> str:
    """In words, how many of several did what was claimed."""
    return HOLDS if n_good == n else FAILS if n_good == 0 else PARTLY


def of_sets(trial: Trial, what: str) -> tuple[str, str]:
    """Word and sentence of a trial of sets."""
    n = len(trial.rows)
    hurts, specific = trial.hurts, trial.specific
    names = f" ({', '.join(specific)})" if 0 < len(specific) < n else ""
    said = (
        f"{len(hurts)} of {n} sets hurt their own {what} beyond random sets, {len(specific)} of "
        f"them hurt the others less{names}; the diagonal dominates by "
        f"{trial.matrix.dominance:+.2g} standard deviations (p = {trial.matrix.p:.2g} over "
        "relabelings)."
    )
    return word_of(len(specific), n), said


def told_apart(adapter: Any, task: Any) -> Any:
    """The examples whose answer this model's tokens do not join to the prompt."""

    def apart(example: Any) -> bool:
        try:
            encode_examples(adapter, [example], answers=True)
        except ls.LensSkillsError:
            return False
        return True

    return task.where(apart)


def languages(model: Any, sizes: Sizes, seed: int) -> Finding:
    """LAPE on five languages."""
    task = told_apart(with_soft_prompt(model, None, False), sentences(sizes.meanings))
    find, held = task.split(0.5, 0.5, seed=seed)
    ranking = ls.rank(model, find, "label:language", method="lape", seed=seed)
    ranked = int(torch.isfinite(ranking.strength).sum())
    chosen = ranking.names(min(max(len(ranking.score) // 100, 10), ranked))
    rates = _gate_rates(model, find, chosen)
    sets = {
        name: [n for n, r in zip(chosen, rates, strict=True) if r == name] for name in LANGUAGES
    }
    few = [name for name, found in sets.items() if len(found) < 2]
    kept = [name for name in LANGUAGES if name not in few]
    if len(kept) < 2:
        return Finding(UNTRIED, f"no two languages have neurons of their own: {few} have none.")
    tasks = {
        name: ls.tasks.few(_each_group(held.where(language=name), 1), sizes.held, seed=seed)
        for name in kept
    }
    trial = try_sets(
        model, tasks, {name: sets[name] for name in kept}, ls.ablate("zero"), position="all",
        n_random=sizes.n_random, seed=seed,
    )  # fmt: skip
    word, said = of_sets(trial, "language")
    lost = f" No neurons of their own: {', '.join(few)}." if few else ""
    counts = ", ".join(f"{name} {len(sets[name])}" for name in kept)
    said = f"Of {len(chosen):,} neurons: {counts}. {said}{lost}"
    return Finding(word, said, trial.rows, figures.damage_matrix(trial.matrix))


def _gate_rates(model: Any, task: Any, names: Sequence[str]) -> list[str]:
    """The language in which each neuron's gate is open most often."""
    units = parse_components(with_soft_prompt(model, None, False), list(names))
    found = np.zeros((len(LANGUAGES), len(units)))
    with tempfile.TemporaryDirectory() as folder:
        for place, language in enumerate(LANGUAGES):
            part, into = task.where(language=language), Path(folder) / language
            table = ls.capture(model, part, into, at="mlp.hook_pre")
            gate = table.activations().reshape(len(part), len(table.layers), -1)
            for column, unit in enumerate(units):
                values = gate[:, table.layers.index(unit.layer), unit.start]
                found[place, column] = float((values > 0).float().mean())
    return [LANGUAGES[place] for place in found.argmax(0)]


def _each_group(task: Any, n: int) -> Any:
    """At most ``n`` examples of each group."""
    seen: dict[str, int] = {}
    kept = set()
    for example in task:
        seen[example.group] = seen.get(example.group, 0) + 1
        if seen[example.group] <= n:
            kept.add(example.id)
    return task.where(lambda example: example.id in kept)


@dataclass(frozen=True, eq=False)
class _FromSilence(PathInputs):
    """A path that begins at zero, as the recipe has it."""

    def bind(self) -> Any:
        return ls.ablate("zero").bind(
            self.adapter,
            self.examples,
            {self.site.name: self.site.layers},
            position=self.position,
            answers=True,
        )


KNOWN = 0.05
"""A model knows a capital that it gives at least this probability in every wording."""

NAMED, WORDINGS_SHARED = 0.2, 3
"""At least this share of a prompt's largest attribution, in so many of the finding prompts."""


def facts(model: Any, sizes: Sizes, seed: int) -> Finding:
    """Knowledge neurons of capitals the model knows in every wording."""
    adapter = with_soft_prompt(model, None, False)
    wordings = [capitals(wording) for wording in WORDINGS]
    odds = [evaluate(model, one, "answer_probability")["answer_probability"] for one in wordings]
    known = [
        name
        for place, name in enumerate(CAPITALS)
        if all(float(one[place]) >= KNOWN for one in odds)
    ][: sizes.countries]
    said = (
        f"{len(known)} of {len(CAPITALS)} capitals have a probability of {KNOWN:.0%} or more in "
        "each of the four wordings."
    )
    if len(known) < 8:
        return Finding(UNTRIED, said)
    site = find_site(adapter, DEFAULT_SITE)
    size = []
    for wording in WORDINGS[:-1]:
        inputs = _FromSilence(
            adapter, capitals(wording, known), ls.confidence("answer"), site, "last"
        )
        drop = expected_changes(inputs, "integrated_gradients")[:, 0]  # layer unit example
        share = -drop / (-drop).amax(dim=(0, 1), keepdim=True)
        size.append(share >= NAMED)
    shared = torch.stack(size).sum(dim=0) >= WORDINGS_SHARED
    sets = {}
    for place, name in enumerate(known):
        rows = shared[:, :, place].nonzero().tolist()
        sets[name] = [f"L{site.layers[layer]}N{unit}" for layer, unit in rows]
    kept = [name for name in known if sets[name]]
    counts = pd.Series([len(sets[name]) for name in kept])
    if len(kept) < 8:
        return Finding(UNTRIED, f"{said} Only {len(kept)} have a neuron in common.")
    return _facts(adapter, kept, {name: sets[name] for name in kept}, counts, said, seed)


def _facts(
    adapter: Any, kept: list[str], sets: dict[str, list[str]], counts: Any, said: str, seed: int
) -> Finding:
    held, random = capitals(WORDINGS[-1], kept), np.random.default_rng(seed)
    units = [parse_components(adapter, sets[name]) for name in kept]
    drawn = [
        parse_components(adapter, random_set(adapter, one, set(sets[name]), random))
        for name, one in zip(kept, units, strict=True)
        for _ in range(RANDOM_PER_FACT)
    ]
    labels = [*kept, *(f"random {place}" for place in range(len(drawn)))]
    rows = []
    for what, edit in (("silenced", ls.ablate("zero")), ("doubled", ls.scale(by=2))):
        total = measure_effects(
            adapter, held, [*units, *drawn], edit, metric=ANSWER, names=labels, seed=seed
        ).total.double()
        n = len(kept)
        own = total[:n].diagonal()
        others = (total[:n].sum(dim=1) - own) / (n - 1)
        place = torch.arange(n)
        chance = total[n:].reshape(n, RANDOM_PER_FACT, n)[place, :, place].mean(dim=1)
        sign = 1 if what == "silenced" else -1
        numbers = torch.stack([own, others, chance, sign * (others - own), sign * (chance - own)])
        low, high = cluster_interval(numbers, kept, seed=seed)
        names = ("own fact", "other facts", "random sets", "more than others", "more than random")
        for row, name in enumerate(names):
            rows.append(
                {
                    "edit": what,
                    "of": name,
                    "log-probability": float(numbers[row].mean()),
                    "low": float(low[row]),
                    "high": float(high[row]),
                    "facts": n,
                }
            )
    table = pd.DataFrame(rows)
    beyond = table[table["of"].isin(["more than others", "more than random"])]["low"] > 0
    shown = table[table["of"].isin(["own fact", "other facts", "random sets"])]
    told = "; ".join(
        f"{row.edit}: {row.of} {row._3:+.2f} [{row.low:+.2f}, {row.high:+.2f}] nats"
        for row in shown.itertuples()
    )
    said = (
        f"{said} {len(kept)} have neurons in common to three wordings (median "
        f"{counts.median():.0f}, {counts.min()} to {counts.max()}). {told}. Other capitals lose "
        f"{table['log-probability'][1] / table['log-probability'][0]:.0%} of what the own one "
        "does: the rule asks for less, not for nothing, as the claim does."
    )
    return Finding(word_of(int(beyond.sum()), 4), said, table)


RANDOM_PER_FACT = 5


def entropy_neurons(model: Any, sizes: Sizes, seed: int) -> Finding:
    """The last layers' neurons of large norm and little direct effect, and random ones."""
    adapter = with_soft_prompt(model, None, False)
    task = ls.tasks.few(ls.tasks.agreement(), 3 * sizes.texts, seed=seed)
    layers = adapter.layers_with("mlp.hook_post")[-2:]
    n_vocab = adapter.d_vocab
    _, cloud = weight_columns(
        adapter, torch.tensor([[layers[0], 0]]), 1, torch.full((n_vocab,), -math.log(n_vocab))
    )
    here = torch.tensor([int(layer) in layers for layer in cloud["layers"]])
    place = torch.cat([torch.arange(int((cloud["layers"] == layer).sum())) for layer in layers])
    frame = pd.DataFrame(
        {
            "layer": cloud["layers"][here].numpy(),
            "neuron": place.numpy(),
            "norm": cloud["norms"][here].double().numpy(),
            "variance": cloud["log_variances"][here].double().numpy(),
        }
    )
    share = frame.groupby("layer")["norm"].rank(pct=True)
    large = frame[share >= 0.75]
    named = large.nsmallest(6, "variance")
    rest = frame.drop(named.index).sample(6, random_state=seed)
    rows = [tuple(map(int, row)) for row in [*named[["layer", "neuron"]].to_numpy(),
                                            *rest[["layer", "neuron"]].to_numpy()]]  # fmt: skip
    found = ls.confidence_regulators(
        model, task, rows, metric=ls.confidence("entropy"), n_effects=sizes.texts,
        n_controls=sizes.n_controls, seed=seed,
    )  # fmt: skip
    columns = [
        "name", "norm_percentile", "log_variance_percentile", "null_share", "entropy_size",
        "p_neutral", "mediated", "mediated_low", "mediated_high", "word",
    ]  # fmt: skip
    table = found.table[columns].copy()
    table.insert(1, "chosen", ["recipe"] * 6 + ["random"] * 6)
    good = (table["p_neutral"] <= 0.05) & (table["mediated_low"] > 0.5)
    own, others = int(good[:6].sum()), int(good[6:].sum())
    moves = int((table["p_neutral"][:6] <= 0.05).sum())
    said = (
        f"Of the recipe's six neurons {moves} move the entropy of neutral text more than 95 % of "
        f"their layer, and {own} do so mostly through the norm; of six random ones {others}. "
        f"`confidence_regulators` calls {int((table['word'][:6] == REGULATOR).sum())} of the six a "
        f"{REGULATOR}."
    )
    return Finding(word_of(own, 6), said, table, figures.confidence_regulation(found))


def code_tokens(model: Any, sizes: Sizes, seed: int) -> Finding:
    """Probeless on kinds of Python token."""
    task = told_apart(
        with_soft_prompt(model, None, False), code(sizes.files, sizes.per_class, seed=seed)
    )
    find, held = task.split(0.5, 0.5, seed=seed)
    named = {
        kind: ls.rank(model, find, f"label:token={kind}", method="probeless", seed=seed).names(10)
        for kind in TOKEN_CLASSES
    }
    signs = _auroc(model, held, named, seed)
    tasks = {kind: ls.tasks.few(held.where(token=kind), sizes.tried, seed=seed) for kind in named}
    trial = try_sets(
        model, tasks, named, ls.ablate("mean", over=find), n_random=sizes.n_random, seed=seed
    )
    table = trial.rows.merge(signs, on="set")
    told = list(table.query("p_auroc <= 0.05")["set"])
    both = [name for name in told if name in trial.specific]
    _, said = of_sets(trial, "tokens")
    said = (
        f"The strongest neuron tells its class from the rest, beyond 200 random neurons, for "
        f"{len(told)} of {len(named)} classes (AUROC {_range(signs['auroc'])}). {said}"
    )
    return Finding(word_of(len(both), len(named)), said, table, figures.damage_matrix(trial.matrix))


def _range(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"


def _auroc(model: Any, held: Any, named: dict[str, list[str]], seed: int) -> pd.DataFrame:
    """How well each class's strongest neuron tells it on the held-out files, and its rank."""
    from lens_skills.stats.correlation import area_under_curve

    with tempfile.TemporaryDirectory() as folder:
        table = ls.capture(model, held, Path(folder) / "held")
        layers = list(table.layers)
        values = table.activations().reshape(len(held), -1).float()
        width = values.shape[1] // len(layers)
    random = torch.from_numpy(
        np.random.default_rng(seed).choice(values.shape[1], 200, replace=False)
    )
    rows = []
    for kind, names in named.items():
        truth = torch.tensor([example.labels["token"] == kind for example in held]).double()
        layer, neuron = (int(part) for part in names[0][1:].split("N"))
        own = area_under_curve(values[:, [layers.index(layer) * width + neuron]], truth)
        others = area_under_curve(values[:, random], truth)
        size, among = float((own - 0.5).abs()), (others - 0.5).abs()
        rows.append(
            {
                "set": kind,
                "strongest": names[0],
                "auroc": 0.5 + size,
                "auroc of random": 0.5 + float(among.mean()),
                "p_auroc": float((1 + (among >= size).sum()) / (1 + len(among))),
            }
        )
    return pd.DataFrame(rows)


SKILLS: dict[str, tuple[Callable[[], Any], str]] = {
    "agreement": (ls.tasks.agreement, "label:plural"),
    "IOI": (ls.tasks.ioi, "label:io_first"),
    "sums": (lambda: ls.tasks.arithmetic("+", digits=(1, 2), n=800), "label:even"),
}


def skill_sets(model: Any, sizes: Sizes, seed: int, method: str, do: str) -> Finding:
    """The ten strongest by a method for each of three skills the model has; each on each."""
    tasks, sets, weak = {}, {}, []
    for name, (make, metric) in SKILLS.items():
        find, held = make().split(0.5, 0.5, seed=seed)
        find = ls.tasks.few(find, sizes.examples, seed=seed)
        try:
            able = evaluate(model, find, "logit_diff")["logit_diff"]
            if float((able > 0).double().mean()) < 0.75:
                weak.append(f"{name} ({float((able > 0).double().mean()):.0%} right)")
                continue
            asked = "logit_diff" if method == "taylor" else metric
            sets[name] = ls.rank(model, find, asked, method=method, seed=seed).names(10)
        except ls.LensSkillsError as reason:
            weak.append(f"{name} ({str(reason).splitlines()[0]})")
            continue
        tasks[name] = ls.tasks.few(held, sizes.tried, seed=seed)
    lacking = f" The model lacks: {', '.join(weak)}." if weak else ""
    if len(tasks) < 2:
        return Finding(UNTRIED, f"The model has fewer than two of the skills.{lacking}")
    mean = {name: SKILLS[name][0]().split(0.5, 0.5, seed=seed)[0] for name in tasks}
    over = [example for name in tasks for example in ls.tasks.few(mean[name], 60, seed=seed)]
    edit = ls.ablate("zero") if do == "zero" else ls.ablate("mean", over=over)
    trial = try_sets(
        model, tasks, sets, edit, metric="logit_diff", n_random=sizes.n_random, seed=seed
    )
    word, said = of_sets(trial, "task")
    return Finding(word, said + lacking, trial.rows, figures.damage_matrix(trial.matrix))


PARTS: dict[str, Callable[[Any, Sizes, int], Finding]] = {
    "languages": languages,
    "facts": facts,
    "entropy": entropy_neurons,
    "code tokens": code_tokens,
    "skill neurons": lambda model, sizes, seed: skill_sets(
        model, sizes, seed, "predictivity", "mean"
    ),
    "task-specific neurons": lambda model, sizes, seed: skill_sets(
        model, sizes, seed, "taylor", "zero"
    ),
}
