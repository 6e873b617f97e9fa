"""`NeuronSet`: components with their evidence as a file to publish; checked, put on trial."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from lens_skills.activations.components import Component
from lens_skills.cards import fold
from lens_skills.errors import LensSkillsError
from lens_skills.file_names import place_to_read
from lens_skills.interventions import Audit, Verdict, ablate, audit
from lens_skills.interventions.verdict import NO_EFFECT
from lens_skills.models import ModelAdapter, with_soft_prompt
from lens_skills.publishing import set_format
from lens_skills.publishing.probe import (
    SEED,
    TEXTS,
    TOLERANCE,
    Probe,
    sizes_of,
    take,
    tokenizer_of,
)
from lens_skills.publishing.set_check import SetCheck, check_model, normalization_of
from lens_skills.publishing.set_contents import (
    GRADES,
    SIGN_CONVENTION,
    Findings,
    check_words,
    components,
    example_of,
    findings,
    metric_rows,
    set_verdict,
    task_row,
    units_of,
    whole_task,
)
from lens_skills.publishing.set_exports import export
from lens_skills.publishing.set_hub import HUB, pulled, push
from lens_skills.results import examples_hash, versions
from lens_skills.scoring.evidence import aligned, short_number
from lens_skills.scoring.select import TRIED
from lens_skills.studies import Study
from lens_skills.tasks import Task

FEWEST = 40
"""Examples that took no part in the search, for a trial on these alone."""

LARGEST_TASK = 2_000_000
"""Characters of examples that a file holds at most."""


@dataclass(frozen=True, eq=False, repr=False)
class NeuronSet:
    """Neurons, heads or other components with what is known of them, as a file to publish.

    A folder with two files. ``neurons.json`` keeps to a JSON Schema (``NeuronSet.schema()``): the
    components with site and position, what they go with (r with its interval, p, q and against what
    null), what interventions show (effect with its interval, δ, controls, the word), what signs
    mean, the task with its examples where they are few, the metrics, the model and its tokenizer,
    versions, licence and citation. ``neurons.safetensors`` holds what the model does on fixed
    tokens, by which `check` tells whether another model holds the same weights. Printing a set
    shows a card.

    Made by `of`, or read by `load`, which check ``document`` against the schema.

    Attributes:
        document: The JSON file.
        tensors: The tensors beside it.

    >>> import tempfile
    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.arithmetic(digits=(1,))[:40]
    >>> made = ls.NeuronSet.of(["L2N63"], model, task, licence="CC-BY-4.0", name="sums")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = ls.NeuronSet.load(made.save(f"{folder}/sums"))
    >>> again.names, again.check(model).exact
    (['L2N63'], True)

    Does not show: that anyone else finds the same; that the licence allows what it says. Weights
    that differ by less than rounding pass, and in half precision that is much; see `check`.
    """

    document: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.document, Mapping) or not isinstance(self.tensors, Mapping):
            raise LensSkillsError(
                "a NeuronSet is made by NeuronSet.of(result, model, task, licence=…) or "
                "NeuronSet.load(folder)."
            )
        set_format.check({**self.document, "digest": "0" * 64})
        if sorted(self.tensors) != sorted(self.document["tensors"]):
            raise LensSkillsError("a NeuronSet holds other tensors than its document names.")
        Probe.of_tensors(self.tensors, sum(unit.stop - unit.start for unit in self.units))

    @classmethod
    def of(
        cls,
        source: Any,
        model: Any,
        task: Task | None = None,
        *,
        licence: str,
        citation: str = "",
        name: str = "",
        description: str = "",
        verdict: Verdict | None = None,
    ) -> "NeuronSet":
        """The set of what a result found, with the model it was found in.

        Args:
            source: A `Study`, a `Selection`, a `Verdict`, an `Audit`, or names (then nothing is
                said of them but who they are).
            model: The model the result is of, as it was then: weights, dtype, folding.
            task: The whole task, before it was split. Its examples go into the file where they have
                at most two million characters; a hash and its recipe always. Of a study by default
                the examples that it holds: not those of its third split that it did not try.
            licence: Under which the file may be used, such as ``"CC-BY-4.0"``.
            citation: How to cite it.
            name: Of the set, without separators of paths; default the task's.
            description: A sentence on what it is about.
            verdict: Where ``source`` is a selection or names: what `verify` found of them.

        Raises:
            LensSkillsError: A result of another model or task, or read with a soft prompt; nothing
                selected; no licence; a name with a separator.
        """
        if task is None and isinstance(source, Study):
            task = whole_task(source)
        if not isinstance(task, Task):
            raise LensSkillsError(
                f"task={task!r:.60} is no Task. Give the one that was studied, before it was split."
            )
        check_words(licence=licence, citation=citation, name=name, description=description)
        found = findings(source, verdict)
        adapter = _adapter(model, found)
        rows = components(adapter, found, "last")
        whole = set_verdict(found)
        probe = take(adapter, units_of(rows))
        tensors = probe.tensors()
        document: dict[str, Any] = {
            "format": set_format.FORMAT,
            "version": set_format.VERSION,
            "name": name or re.sub(r"[/\\]", "_", task.name),
            "description": description,
            "licence": licence,
            "citation": citation,
            "sign_convention": dict(SIGN_CONVENTION),
            "grades": dict(GRADES),
            "model": {
                "name": adapter.name,
                "architecture": str(getattr(adapter.model.cfg, "original_architecture", "") or ""),
                "implementation": adapter.implementation,
                "dtype": str(adapter.dtype).removeprefix("torch."),
                "normalization": normalization_of(adapter),
                "fingerprint": adapter.fingerprint(),
                "sizes": sizes_of(adapter),
                "chat": adapter.chat,
                "template": adapter.reading.get("template"),
            },
            "tokenizer": tokenizer_of(adapter),
            "probe": {
                "texts": list(TEXTS),
                "seed": SEED,
                "tolerance": {dtype: dict(both) for dtype, both in TOLERANCE.items()},
            },
            "task": task_row(task, found, examples_hash(task), LARGEST_TASK),
            "metrics": metric_rows(rows, whole),
            "components": rows,
            "set_verdict": whole,
            "notes": list(found.notes),
            "exploratory": found.exploratory,
            "versions": versions(),
            "tensors": sorted(tensors),
        }
        return cls(document, tensors)

    def save(self, folder: str | Path) -> Path:
        """Writes ``neurons.json`` and ``neurons.safetensors`` into a folder of their own; its path.

        A set saved there before is replaced; the folder appears whole or not at all.

        Raises:
            LensSkillsError: The folder cannot be written, or holds something else.
        """
        return set_format.write(Path(folder), self.document, self.tensors)

    @classmethod
    def load(cls, place: str | Path) -> "NeuronSet":
        """The set in a folder, or of the hub by ``"hub:user/name"`` (or ``…@revision``).

        Nothing of it is executed: it is JSON and safetensors, and held against the schema.

        Raises:
            LensSkillsError: No set there; a newer version of the format; a damaged one, or one that
                does not keep to the schema; the hub does not answer, or has none.
        """
        named = isinstance(place, str) and place.startswith(HUB)
        here = pulled(str(place)) if named else place_to_read(place)
        document, tensors = set_format.read(here)
        return cls(document, tensors)

    @staticmethod
    def schema() -> dict[str, Any]:
        """The JSON Schema that ``neurons.json`` keeps to."""
        return dict(set_format.schema())

    def check(self, model: Any) -> SetCheck:
        """Whether a model holds the weights the set was published with; printing shows a card.

        Both read the same fixed tokens. Compared are, in every layer, the MLP's neurons and the
        residual stream less its mean over dimensions (random projections of either), and the
        log-probabilities of next tokens: what folding of norms and centring of weights leave as
        they are. The set's components are compared at their own site too.

        Another dtype, other folding and weights that are not bit for bit the same warn.

        Raises:
            LensSkillsError: Another model, tokenizer or other weights: what differs, and where
                first.

        Does not show: changes below the rounding of the dtype. Of bfloat16 that is a fifth of a
        layer's activations, so that a fine-tuned copy may pass; check in the dtype of the file.
        """
        adapter = with_soft_prompt(model, None)
        if adapter.soft is not None:
            raise LensSkillsError(
                "the model is read with a soft prompt, and a set is of a bare model. Give the "
                "model itself."
            )
        return check_model(self.document, self._probe, self.units, adapter)

    def audit(self, model: Any, task: Task | None = None, **options: Any) -> Audit:
        """The set's components on trial in a model that holds its weights, by `lens_skills.audit`.

        Position, metric, claims, chat and a declared δ are those of the file; ``options`` are
        those of `lens_skills.audit`, and come first.

        Args:
            model: As in `check`, which comes first.
            task: Examples the components were not found on. Default those of the file that took
                no part in the search, where they are 40 or more; else all, which is said.
            options: Of `lens_skills.audit`. At most ``most=20`` components are tried, those with
                a published verdict first.

        Raises:
            LensSkillsError: Other weights; a file without examples (what to give); a metric of the
                authors' own, which has to be given; as `lens_skills.audit`.
        """
        self.check(model)
        examples, notes = self._examples() if task is None else (task, self._seen(task))
        chat = self.document["model"]["chat"]
        asked = self._asked(options)
        units, cut = self._to_try(options.pop("most", TRIED))
        positions = sorted({row["position"] for row in self.document["components"]})
        given: dict[str, Any] = {
            "neurons": units,
            "position": positions[0] if len(positions) == 1 else positions,
            "chat": chat,
            **asked,
            **options,
        }
        result = audit(with_soft_prompt(model, None), examples, **given)
        return replace(result, notes=(*notes, *cut, *result.notes))

    def export(self, path: str | Path, *, to: str = "", **options: Any) -> Path:
        """Writes the components for another program; the file's path.

        Args:
            path: The file; its ending says what it is, where ``to`` does not: ``.csv`` or ``.py``.
            to: ``"csv"``: a row each, with all numbers. ``"python"``: a module of plain lists and
                dicts. ``"pyvene"``: JSON of ``representations`` for pyvene's IntervenableConfig,
                and the ``subspaces`` of each. ``"lape"``: JSON of neurons by skill and layer, as
                the lists of language neurons of arXiv 2402.16438. ``"neuronpedia"``: the body of a
                request to Neuronpedia's ``/api/list/new-with-features``.
            options: Of pyvene ``component``, the module that the neurons of a layer go into, such
                as ``"model.layers[{layer}].mlp.down_proj.input"``, where the architecture is not
                known. Of Neuronpedia ``model`` and ``layer``, what it calls them (default the
                model's name in small letters, and ``"{layer}-neurons"``).

        Raises:
            LensSkillsError: An unknown form; components that it has no place for; a file that
                cannot be written.
        """
        return export(self.document, self.units, Path(path), to, options)

    def push(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads the set to a repository of the Hugging Face hub, which is made as needed.

        With a page for readers, ``README.md``. The token is read as all of huggingface_hub does it
        (``hf auth login``, or ``HF_TOKEN``), and neither printed nor saved.

        Args:
            repository: ``"user/name"``.
            private: Whether only you may read it, where it is made.
            token: Instead of the one that is set.

        Returns:
            What `load` opens: ``"hub:user/name"``.

        Raises:
            LensSkillsError: No such name of a repository; the hub refuses (why), or is not
                reached.
        """
        return push(self.document, self.tensors, repository, private=private, token=token)

    @property
    def name(self) -> str:
        """What the set is called."""
        return str(self.document["name"])

    @cached_property
    def units(self) -> tuple[Component, ...]:
        """The components, in order, as every verb takes them."""
        return units_of(self.document["components"])

    @property
    def names(self) -> list[str]:
        """Their names, such as ``L17N635``."""
        return [unit.name for unit in self.units]

    def __len__(self) -> int:
        return len(self.units)

    @property
    def task(self) -> Task | None:
        """The task in the file, whole; None where it is too large to be there."""
        about = self.document["task"]
        if about is None or about["examples"] is None:
            return None
        rows = [example_of(row) for row in about["examples"]]
        return Task(about["name"], rows, recipe=about["recipe"])

    def frame(self) -> pd.DataFrame:
        """One row per component: name layer site position, its first association, its verdict.

        Columns of the association begin with ``r`` or carry the names of the file; those of the
        verdict begin with ``effect``, ``verdict`` or ``delta``.
        """
        rows = []
        for one in self.document["components"]:
            claim = next(iter(one["associations"]), {})
            ruling = one["verdict"] or {}
            rows.append(
                {
                    **{key: one[key] for key in ("name", "layer", "site", "start", "position")},
                    **{key: claim.get(key) for key in ("metric", "r", "low", "high", "p", "q")},
                    "grade": claim.get("grade", ""),
                    "causal_metric": ruling.get("metric"),
                    "effect": ruling.get("effect"),
                    "effect_low": ruling.get("low"),
                    "effect_high": ruling.get("high"),
                    "effect_q": ruling.get("q"),
                    "unit": ruling.get("unit"),
                    "delta": ruling.get("delta"),
                    "verdict": ruling.get("label", ""),
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        document, most = self.document, 10
        frame = self.frame()
        about = document["model"]
        where = dict.fromkeys(f"{one.site} at {at}" for one, at in zip(
            self.units, frame["position"], strict=True))  # fmt: skip
        lines = [
            f"NeuronSet {self.name!r}: {len(self):,} of {about['name']} ({about['dtype']})",
            ", ".join(where),
            _task_line(document["task"]),
        ]
        table = [["", "r [95 %]", "q", "effect [95 %]", "verdict"]]
        for row in frame.head(most).to_dict("records"):
            effect = _interval(row["effect"], row["effect_low"], row["effect_high"])
            table.append(
                [row["name"], _interval(row["r"], row["low"], row["high"]),
                 short_number(row["q"]), effect, row["verdict"].replace(NO_EFFECT, "no effect > δ")]
            )  # fmt: skip
        lines += ["", *aligned(table, left=(0, 1, 4))]
        if len(self) > most:
            lines.append(f"… and {len(self) - most:,} more in .frame()")
        metrics = [f"{one['name']}: {one['definition']}" for one in document["metrics"]]
        lines += ["", *metrics]
        signs = document["sign_convention"]
        lines += [f"r {signs['r']}", f"effect: {signs['effect']}"] if metrics else []
        if document["exploratory"]:
            lines.append("exploratory: examples were used more than once")
        lines += [f"note: {note}" for note in document["notes"]]
        lines.append(f"licence {document['licence']}")
        lines += [f"cite: {document['citation']}"] if document["citation"] else []
        return fold("\n".join(lines))

    @cached_property
    def _probe(self) -> Probe:
        return Probe.of_tensors(self.tensors, sum(unit.stop - unit.start for unit in self.units))

    def _to_try(self, most: Any) -> tuple[list[Component], tuple[str, ...]]:
        """The components to put on trial, those with a verdict first, and what is left out."""
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise LensSkillsError(f"most= is how many to try, 1 or more, not {most!r:.60}.")
        rows = self.document["components"]
        order = sorted(range(len(self)), key=lambda place: rows[place]["verdict"] is None)[:most]
        if len(order) == len(self):
            return list(self.units), ()
        note = f"{len(order):,} of {len(self):,} components, those with a published verdict first"
        return [self.units[place] for place in sorted(order)], (f"{note}; most=… tries more",)

    def _examples(self) -> tuple[Task, tuple[str, ...]]:
        """The examples of the file that are to be tried on, and what must be said of them."""
        about, whole = self.document["task"], self.task
        if whole is None:
            said = "no task" if about is None else (
                f"no examples of {about['name']} ({about['n_examples']:,}, too large for a file)"
            )  # fmt: skip
            raise LensSkillsError(
                f"the NeuronSet {self.name!r} holds {said}. Make it as its recipe says "
                f"({(about or {}).get('recipe', '')}) or take other examples of the skill, and "
                "give them: .audit(model, task)."
            )
        used = {row["id"]: row["used"] for row in about["examples"]}
        if not any(used.values()):
            return whole, ()
        fresh = [example for example in whole if used[example.id] != "search"]
        n_tried = sum(use == "verdict" for use in used.values())
        if len(fresh) >= FEWEST and len(fresh) < len(whole):
            words = f"{len(fresh):,} examples of the file that took no part in the search"
            note = f"on {words}; {n_tried:,} of them were the published verdict's"
            return Task(whole.name, fresh, split_name=words, recipe=whole.recipe), (note,)
        searched = sum(use == "search" for use in used.values())
        if not searched:
            return whole, (f"{n_tried:,} of the examples were the published verdict's",)
        return whole, (
            f"on the file's own examples, {searched:,} of which the components were found with: "
            "this repeats the claim and is no new test of it. Give a task= of other examples",
        )

    def _seen(self, task: Task) -> tuple[str, ...]:
        about = self.document["task"]
        if about is None or not isinstance(task, Task):
            return ()
        known = {row["id"]: row for row in about["examples"] or ()}
        again = [
            example for example in task
            if known.get(example.id, {}).get("used") == "search"
            and known[example.id]["prompt"] == example.prompt
        ]  # fmt: skip
        searched = any(row["associations"] for row in self.document["components"])
        whole = about["examples"] is None and examples_hash(task) == about["examples_hash"]
        if not again and not (whole and searched):
            return ()
        n = f"{len(again):,} of them" if again else "some of them"
        return (f"the components were found with {n}: on these r is no new test",)

    def _asked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Metric, claims, δ and edit as the file says."""
        rulings = [row["verdict"] for row in self.document["components"] if row["verdict"]]
        built_in = {one["name"] for one in self.document["metrics"] if one["built_in"]}
        asked: dict[str, Any] = {}
        if rulings:
            first = rulings[0]
            if first["metric"] not in built_in and "metric" not in options:
                raise LensSkillsError(
                    f"the published effects are on {first['metric']!r}, a function of the authors' "
                    "that is not in the file. Give it, or another metric: .audit(model, task, "
                    "metric=…)."
                )
            asked["metric"] = first["metric"]
            if first["delta_from"] == "declared":
                asked["delta"] = first["delta"]
            if str(first["edit"]).startswith("zero ablation"):
                asked["do"] = ablate("zero")
        claims = {
            one["metric"] for row in self.document["components"] for one in row["associations"]
        }
        if known := sorted(claims & built_in):
            asked["claims"] = known
        return {key: value for key, value in asked.items() if key not in options}


def _adapter(model: Any, found: Findings) -> ModelAdapter:
    """The model, read as the result's examples were.

    Raises:
        LensSkillsError: Not the model the result is of; a soft prompt.
    """
    chats = {str(about["chat"]): about["chat"] for about in found.about if "chat" in about}
    adapter = with_soft_prompt(model, None, next(iter(chats.values()), False))
    if adapter.soft is not None or any(about.get("prompt") for about in found.about):
        raise LensSkillsError(
            "the result was read with a soft prompt, which a NeuronSet cannot hold: a set is of a "
            "bare model. Publish the prompt's own folder beside it (SoftPrompt.save), or study the "
            "task without it."
        )
    for about in found.about:
        there = about.get("model_fingerprint")
        if there is not None and there != adapter.fingerprint():
            raise LensSkillsError(
                f"the result is of other weights ({about.get('model')}, {about.get('dtype', '')}) "
                f"than {adapter.name} ({adapter.dtype}, {adapter.implementation}) holds. Give the "
                "model it was made with, opened as it was then."
            )
    for row in found.positions.values():
        _known_position(row)
    return adapter


def _known_position(label: str) -> None:
    if label.startswith("span("):
        raise LensSkillsError(
            f"the components were read at {label}, whose place depends on each example's text and "
            "is not saved with the result. Study them at 'last' or an index to publish them."
        )


def _task_line(about: Mapping[str, Any] | None) -> str:
    if about is None:
        return "no task"
    held = "in the file" if about["examples"] is not None else "not in the file, which has its hash"
    return (
        f"task {about['name']}: {about['n_examples']:,} examples in {about['n_groups']:,} groups, "
        f"{held}"
    )


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or value != value:
        return ""
    if low is None or low != low:
        return f"{value:+.2g}"
    return f"{value:+.2g} [{low:+.2g}, {high:+.2g}]"
