"""What a report says before its tables: what was asked and found, of what, and its caveats."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_skills.circuits import Circuit
from lens_skills.explanation import ActivatingExamples, Explanations
from lens_skills.reporting.document import Fact, NeuronPage, Step
from lens_skills.reporting.found_analyses import Analysis
from lens_skills.reporting.phrases import change, counted, listed, size
from lens_skills.reporting.sources import Sources
from lens_skills.results import versions
from lens_skills.scoring import Scores
from lens_skills.scoring.evidence import BADGE, GENERAL, GENERAL_MEANING, MEANINGS, of_others
from lens_skills.scoring.predicted_evidence import DOORS, seen_words
from lens_skills.scoring.scores import family_words
from lens_skills.stats.effect_tests import FEW_GROUPS
from lens_skills.studies import Study

# ── what was found ───────────────────────────────────────────────────────────────────────────────


def found_of(
    analyses: Sequence[Analysis], names: Sequence[str], sources: Sources
) -> tuple[str, ...]:
    """Sentences; that nothing was found is one of them."""
    found: list[str] = []
    for one, name in zip(analyses, names, strict=True):
        told = _finding(one)
        found += [f"{name}: {' '.join(told)}"] if len(analyses) > 1 else told
    for circuit in sources.of(Circuit).values():
        words = ", ".join(f"{n} {word}" for word, n in circuit.counts.items())
        found.append(f"Circuit of {circuit.target}: {len(circuit.edges)} edges tested, {words}.")
    if not found:
        found.append(f"{counted(len(sources.results), 'result')} without scores or verdict: see "
                     "the cards.")  # fmt: skip
    return tuple(found)


def _finding(one: Analysis) -> list[str]:
    found = []
    if one.preflight is not None and one.preflight.skill is False:
        found.append(
            "There is no skill to explain: the model does not do the task better than chance."
        )
    if one.selection is not None:
        found.append(f"{one.selection.attrition_line(one.verdict)}.")
        if one.selection.by != DOORS[0]:
            return found + _end(one)
        if not one.selection.rows:
            found.append(f"Nothing was found: no neuron is associated with {one.metric}.")
        elif not len(one.selection):
            n = counted(len(one.selection.rows), "associated neuron")
            found.append(
                f"Nothing was found that holds: of {n}, "
                "none is confirmed on unseen groups and beats the control task."
            )
    elif one.scores is not None:
        beyond = len(one.rows)
        held = one.scores.scores
        if one.scores.p_family is None:
            found.append(
                f"{one.metric}: {counted(held.n_units, 'neuron')} scored, without a null, so that "
                "nothing can be called associated."
            )
        elif beyond:
            found.append(
                f"{counted(beyond, 'neuron')} of {held.n_units:,} associated with {one.metric} on "
                "explore; none was tested on other examples yet."
            )
        else:
            found.append(f"Nothing was found: no neuron is associated with {one.metric}.")
    return found + _end(one)


def _end(one: Analysis) -> list[str]:
    """What the verdict says, or why there is none."""
    if one.verdict is not None:
        return _verdict(one)
    if one.study is not None and one.study.no_verdict:
        return [f"No verdict: {one.study.no_verdict}."]
    return []


def _verdict(one: Analysis) -> list[str]:
    verdict = one.verdict
    assert verdict is not None
    words = ", ".join(f"{n} {word}" for word, n in verdict.counts.items() if n)
    unit = verdict.effects.unit
    found = [
        f"Of {counted(len(verdict), 'neuron')} tried by {verdict.effects.do}, effect on "
        f"{verdict.effects.metric}: {words}."
    ]
    whole = verdict.rulings[-1] if verdict.rulings else None
    if whole is not None and whole.name == "set":
        told = change(whole.effect, whole.low, whole.high, unit, whole.percent)
        moves = "raise" if whole.effect > 0 else "lower"
        p = "" if whole.p is None else f", p = {whole.p:.2g} among {whole.n_controls} matched sets"
        found.append(
            f"Edited together they {moves} {verdict.effects.metric}, by {told}: {whole.label}{p}."
        )
    return found


# ── what was asked, and of what ──────────────────────────────────────────────────────────────────


def asked_of(
    analyses: Sequence[Analysis], names: Sequence[str], sources: Sources
) -> tuple[Fact, ...]:
    """Task, metrics, site, position, seed and options of every analysis, each said once."""
    found: list[Fact] = []
    for one, name in zip(analyses, names, strict=True):
        about = f" ({name})" if len(analyses) > 1 else ""
        found += [Fact(f"{fact.name}{about}", fact.value, fact.code) for fact in _asked(one)]
    return tuple(_once(found))


def _asked(one: Analysis) -> list[Fact]:
    about = one.about
    found = [Fact("task", one.task)]
    if one.metric:
        found.append(Fact("looked for", one.metric, code=True))
    held = None if one.scores is None else one.scores.scores
    if held is not None and len(held.metrics) > 1:
        others = [metric for metric in held.metrics if metric != one.metric]
        found.append(Fact("scored beside it", listed(others, 20), code=True))
    found.append(Fact("read at", f"{one.site} at {listed(one.positions)}", code=True))
    if about.get("given"):
        found.append(Fact("partialled out", listed(list(about["given"]), 20), code=True))
    if "seed" in about:
        found.append(Fact("seed", str(about["seed"])))
    if about.get("n_permutations"):
        exchange = about.get("exchange", {})
        how = exchange.get(one.metric, "") if isinstance(exchange, Mapping) else str(exchange)
        told = counted(int(about["n_permutations"]), "permutation")
        found.append(Fact("null", told + (f", exchanged: {how}" if how else "")))
    if about.get("n_controls"):
        found.append(Fact("control task", counted(int(about["n_controls"]), "draw")))
    if about.get("chat"):
        found.append(Fact("chat template", "yes" if about["chat"] is True else str(about["chat"])))
    if about.get("precision"):
        found.append(Fact("computed in", str(about["precision"])))
    if one.selection is not None:
        found.append(Fact("false discoveries on confirm", f"{one.selection.fdr:.0%}"))
    if one.verdict is not None:
        found += _intervened(one.verdict)
    return found


def _intervened(verdict: Any) -> list[Fact]:
    controls = verdict.provenance.get("controls", {})
    told = f"{verdict.delta:.2g} {verdict.effects.unit}"
    found = [
        Fact("intervention", verdict.effects.do),
        Fact("effects measured by", f"{verdict.effects.metric}, in {verdict.effects.unit}"),
        Fact("smallest effect that matters (δ)", f"{told}, {verdict.delta_from}"),
    ]
    if isinstance(controls, Mapping) and controls:
        sets, single = controls.get("sets"), controls.get("neurons")
        found.append(Fact("controls", f"{sets} matched sets, {single} single neurons a layer"))
    return found


def data_of(
    analyses: Sequence[Analysis],
    names: Sequence[str],
    sources: Sources,
    examples: ActivatingExamples | None,
) -> tuple[Fact, ...]:
    """Splits with their sizes and groups; the model, its layers and neurons."""
    found: list[Fact] = []
    for one, name in zip(analyses, names, strict=True):
        about = f" ({name})" if len(analyses) > 1 else ""
        found += [Fact(f"{fact.name}{about}", fact.value, fact.code) for fact in _data(one)]
    if examples is not None:
        split = examples.provenance.get("split", "examples")
        n_groups = len(set(examples.examples["group"]))
        told = f"{examples.provenance.get('task', '')}, {split}: "
        found.append(Fact("examples on the neurons' pages",
                          told + size(len(examples.examples), n_groups)))  # fmt: skip
    return tuple(_once(found))


def _data(one: Analysis) -> list[Fact]:
    about = one.about
    kind = about.get("implementation")
    dtype = str(about.get("dtype", "")).removeprefix("torch.")
    told = ", ".join(part for part in (_IMPLEMENTATIONS.get(kind, kind), dtype) if part)  # type: ignore[arg-type]
    found = [Fact("model", one.model + (f" ({told})" if told else ""))]
    for split, view in (("explore", one.scores), ("confirm", one.confirm)):
        if view is None:
            continue
        held = view.scores
        text = size(held.n_examples, held.n_groups)
        if 0 < held.effective_groups < 0.95 * held.n_groups:
            text += f", which tell as much as {held.effective_groups:.0f} of one size"
        found.append(Fact(f"{split} split", text))
    if one.scores is not None:
        held = one.scores.scores
        layers = sorted(set(held.layer.tolist()))
        found.append(Fact("neurons scored", f"{held.n_units:,} in {counted(len(layers), 'layer')}"))
    if one.verdict is not None:
        effects = one.verdict.effects
        split = one.verdict.provenance.get("split", "intervene")
        text = size(len(effects.clean), len(set(effects.groups)))
        if text.split()[0] == str(split).split()[0]:  # "64 examples of the intervene split"
            text = counted(len(set(effects.groups)), "group")
        clean = f"clean mean of {effects.metric} {float(effects.clean.mean()):.3g} {effects.unit}"
        found.append(Fact("intervened on", f"{split}: {text}; {clean}"))
    return found


_IMPLEMENTATIONS = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}


def _once(facts: Sequence[Fact]) -> list[Fact]:
    """Each fact once; what is the same of all analyses is said without their names."""
    plain: dict[str, list[str]] = {}
    for fact in facts:
        plain.setdefault(fact.name.split(" (")[0], []).append(fact.value)
    found: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        name = fact.name.split(" (")[0]
        same = len(plain[name]) > 1 and len(set(plain[name])) == 1
        shown = Fact(name if same else fact.name, fact.value, fact.code)
        found[shown.name, shown.value] = shown
    return list(found.values())


# ── the way down ─────────────────────────────────────────────────────────────────────────────────

_NOTES = {
    "associated": "A correlation with the metric that chance reaches in at most 5 % of tasks with "
    "any neuron of the model (explore).",
    "beat the control task": "More than the same neuron shows for random values of the input "
    "types, so that knowing the words is not enough (explore).",
    "tested": "Tested again on groups that took no part in choosing (confirm).",
    "confirmed": "Associated again there, with the same sign, at the asked rate of false "
    "discoveries.",
    "tried": "The strongest of those were edited, one at a time (intervene).",
    "causal": "The edit moves the metric by more than δ, more than controls do, and more than the "
    "neuron's size leads to expect.",
}


def steps_of(one: Analysis) -> tuple[Step, ...]:
    """How many neurons are left after each step, and what the step asks."""
    if one.selection is None:
        return _scored_steps(one)
    by_door = one.selection.steps(one.verdict)
    counts = dict(by_door.get(DOORS[0], {"neurons": one.selection.attrition["neurons"]}))
    badged = counts.pop(BADGE, None)
    positions = len(one.selection.positions)
    family = family_words(counts.get("neurons", 0), positions)
    found = []
    for step, n in counts.items():
        note = _NOTES.get(step, "")
        if step == "neurons":
            note = f"All that were scored: {family}."
        if step == "confirmed" and badged is not None:
            note += f" Of them {badged:,} {BADGE}: beyond random directions of their layer."
        found.append(Step(step, n, note))
    for step, n in by_door.get(DOORS[1], {}).items():
        if step != "neurons":
            found.append(Step(f"by prediction: {step}", n, _PREDICTED_NOTES[step]))
    return tuple(found)


_PREDICTED_NOTES = {
    "tested": "Their first-order effect under the edit, signed and averaged, is the largest of all "
    "neurons (explore).",
    "confirmed": "The same sign on groups that took no part, an interval beyond 0, at the asked "
    "rate of false discoveries (confirm).",
    "tried": _NOTES["tried"],
    "causal": _NOTES["causal"],
    GENERAL: "Causal, and neither explore nor confirm shows an association with the metric.",
}


def _scored_steps(one: Analysis) -> tuple[Step, ...]:
    if one.scores is None:
        return ()
    held = one.scores.scores
    family = family_words(held.n_units, len(held.positions))
    found = [Step("neurons", held.n_units, f"All that were scored: {family}.")]
    for step, mask in one.scores.passing().items():
        found.append(Step(step, int(mask.any(0).sum()), _NOTES.get(step, "")))
    return tuple(found)


def grades_of(one: Analysis) -> tuple[Fact, ...]:
    """How many associated (or predicted) neurons have each grade, and what it means."""
    if one.selection is None:
        return ()
    grades = [str(row["grade"]) for row in one.rows]
    found = [Fact(grade, f"{grades.count(grade):,}: {words}") for grade, words in MEANINGS.items()]
    if facts := one.selection.predicted:
        told = f"{grades.count(GENERAL):,}: {GENERAL_MEANING}; {seen_words(facts)}"
        found.append(Fact(GENERAL, told))
    others = sum(of_others(row) and not row["grade"] for row in one.rows)
    if none := grades.count("") - others:
        found.append(Fact("none", f"{none:,}: associated on explore, and not confirmed"))
    if others:
        found.append(
            Fact("only predicted", f"{others:,}: not associated; not tried, or not causal")
        )
    return tuple(found)


# ── what to beware of, and what is not there ─────────────────────────────────────────────────────


def caveats_of(
    analyses: Sequence[Analysis], names: Sequence[str], sources: Sources
) -> tuple[str, ...]:
    """What a reader must know before quoting a number, each sentence once."""
    found: list[str] = []
    own = [_caveats(one) for one in analyses]
    for name, told in zip(names, own, strict=True):
        for text in told:
            of_all = all(text in other for other in own)
            found.append(text if of_all else f"{name}: {text}")
    for name, result in sources.results.items():
        if isinstance(result, Study | Scores | ActivatingExamples):
            continue
        kind = type(result).__name__
        if kind in ("Selection", "Verdict"):
            continue
        found += [f"{name}: {note}" for note in getattr(result, "notes", ()) or ()]
        if getattr(result, "exploratory", False):
            found.append(f"{name}: exploratory, examples were used before.")
    return tuple(dict.fromkeys(found))


def _caveats(one: Analysis) -> list[str]:
    found: list[str] = []
    if one.exploratory:
        found.append("EXPLORATORY: examples were used before; nothing here is confirmed.")
    if one.rows and one.verdict is None:
        found.append(
            "Correlates, not causes: no neuron was intervened on. Ablate before you call one a "
            "skill neuron."
        )
    elif one.verdict is not None and one.rows:
        untried = len(one.rows) - len(set(one.rulings) & one.names)
        if untried > 0:
            found.append(
                f"{counted(untried, 'neuron')} of {len(one.rows):,} in the table "
                f"{'was' if untried == 1 else 'were'} not tried: of those nothing is known but "
                f"correlations{' and predictions' if 'found_by' in one.rows[0] else ''}."
            )
    if one.rows and one.metric:
        found.append(
            "r on explore is that of neurons chosen for a large r, and too large; quote r on "
            "confirm. Intervals are of one neuron by itself: of the strongest of many they lie too "
            "far out."
        )
    if one.verdict is not None and (groups := one.verdict.effective_groups) < FEW_GROUPS:
        found.append(
            f"Effects rest on {groups:.0f} groups of like size: below {FEW_GROUPS}, intervals are "
            "wide and may be too short."
        )
    if one.selection is not None:
        found += [f"{note[:1].upper()}{note[1:]}." for note in one.selection.notes]
    elif one.scores is not None:
        found += [f"{note[:1].upper()}{note[1:]}." for note in one.scores.scores.notes]
    if one.verdict is not None:
        found += [f"{note[:1].upper()}{note[1:]}." for note in one.verdict.notes]
    if one.study is not None and (caution := one.study.caution()):
        found.append(f"{caution[:1].upper()}{caution[1:]}")
    return [text.replace("..", ".") for text in found]


def missing_of(
    analyses: Sequence[Analysis],
    sources: Sources,
    pages: Sequence[NeuronPage],
    examples: ActivatingExamples | None,
) -> tuple[Fact, ...]:
    """What the report could not show, and what would make it."""
    found = list(sources.damaged)
    run = str(sources.folder) if sources.is_run else ""

    def by(command: str, call: str) -> str:
        return f"lens-skills {command.format(run=run)}" if run else call

    main = analyses[0] if analyses else None
    if main is not None and main.scores is not None and main.selection is None:
        found.append(
            Fact("confirmation", by("select {run}", "select(scores, confirm_scores)"), code=True)
        )
    if main is not None and main.verdict is None and main.selection is not None:
        if main.study is not None and main.study.no_verdict:
            found.append(Fact("verdict", main.study.no_verdict))
        elif len(main.selection):
            found.append(
                Fact(
                    "verdict", by("verify {run}", "verify(model, intervene, selection)"), code=True
                )
            )
    named = [page.name for page in pages]
    if named and not sources.of(Explanations):
        found.append(
            Fact("explanations", by("explain {run}", "explain(model, task, neurons)"), code=True)
        )
    if named and not sources.of(Circuit):
        text = by(f"circuit {{run}} --neuron {named[0]}", f"circuit(model, pairs, {named[0]!r})")
        found.append(Fact("circuits", text, code=True))
    without = [page.name for page in pages if not page.quantiles]
    if without:
        text = by("report {run}", "report(results, path, model=model, examples=task)")
        some = "" if len(without) == len(named) else f" of {listed(without, 4)}"
        found.append(Fact(f"examples by activation{some}", text, code=True))
    rows = sum(len(one.names) for one in analyses)
    if rows > len(pages):
        found.append(
            Fact("further pages", f"{len(pages):,} of {rows:,} neurons in the table have one; "
                 "neurons= (--neurons) says how many")
        )  # fmt: skip
    if not sources.commands:
        found.append(
            Fact("commands", "these results were made in Python, whose script is not known here")
        )
    return tuple(found)


def versions_of(analyses: Sequence[Analysis], sources: Sources) -> tuple[Fact, ...]:
    """Of the packages, the model's fingerprint, the examples' hash; what differs here and now."""
    abouts = [one.about for one in analyses]
    others = [getattr(one, "provenance", None) for one in sources.results.values()]
    abouts += [about for about in others if isinstance(about, Mapping)]
    found: list[Fact] = []
    now = versions()
    for about in abouts:
        for package, number in (about.get("versions") or {}).items():
            here = now.get(package)
            differs = f" (this report: {here})" if here not in (None, number) else ""
            found.append(Fact(package, f"{number}{differs}", code=True))
        if about.get("model_fingerprint"):
            found.append(Fact("weights and tokenizer (SHA-256)", about["model_fingerprint"], True))
        hashes = about.get("examples") or ()  # of one split, or of each of several
        splits = about.get("splits") or [about.get("split", "all")]
        several = [hashes] if isinstance(hashes, str) else hashes
        for split, value in zip(splits, several, strict=False):
            found.append(Fact(f"examples of the {split} (hash)", value, True))
    return tuple({(fact.name, fact.value): fact for fact in found}.values())
