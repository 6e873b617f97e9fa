"""A `NeuronSet` in the forms of other programs: CSV, Python, pyvene, LAPE's lists, Neuronpedia."""

import csv
import io
import json
import pprint
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lens_skills.activations.components import HEADS, Component
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.models.neurons import POST
from lens_skills.results import write_file

Document = Mapping[str, Any]
_LLAMA = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Gemma3", "Olmo2")
# What reads a block's neurons, and what reads its heads: their inputs are the two sites.
_MODULES = {
    **{
        f"{name}ForCausalLM": {
            POST: "model.layers[{layer}].mlp.down_proj.input",
            HEADS: "model.layers[{layer}].self_attn.o_proj.input",
        }
        for name in _LLAMA
    },
    "GPT2LMHeadModel": {
        POST: "transformer.h[{layer}].mlp.c_proj.input",
        HEADS: "transformer.h[{layer}].attn.c_proj.input",
    },
    "GPTNeoXForCausalLM": {
        POST: "gpt_neox.layers[{layer}].mlp.dense_4h_to_h.input",
        HEADS: "gpt_neox.layers[{layer}].attention.dense.input",
    },
}
_ENDINGS = {".csv": "csv", ".py": "python"}
_OPTIONS = {"pyvene": {"component"}, "neuronpedia": {"model", "layer"}}


def export(
    document: Document,
    units: Sequence[Component],
    path: Path,
    to: str,
    options: Mapping[str, Any],
) -> Path:
    """Writes one file; see `NeuronSet.export`."""
    form = to or _ENDINGS.get(path.suffix, "")
    if form not in _FORMS:
        near = did_you_mean(form, _FORMS) if form else ""
        asked = f"no form {form!r}.{near}" if form else f"{path.name!r} does not say in what form."
        raise LensSkillsError(f"{asked} Say to= one of {', '.join(_FORMS)}.")
    unknown = sorted(set(options) - _OPTIONS.get(form, set()))
    if unknown:
        known = ", ".join(sorted(_OPTIONS.get(form, set()))) or "none"
        raise LensSkillsError(f"{form} has no option {unknown[0]!r}. It has: {known}.")
    for name, value in options.items():
        if not isinstance(value, str):
            raise LensSkillsError(f"{name}={value!r:.60} is no text.")
    if path.is_dir():
        raise LensSkillsError(f"{path} is a folder. Name the file to write.")
    return write_file(path, _FORMS[form](document, units, **options).encode("utf-8"))


def _rows(document: Document) -> list[dict[str, Any]]:
    """A flat row per component and association."""
    found = []
    for one in document["components"]:
        place = {key: one[key] for key in ("name", "layer", "site", "start", "stop", "position")}
        ruling = {f"effect_{key}": part for key, part in (one["verdict"] or {}).items()}
        for claim in one["associations"] or [{}]:
            given = {"given": " ".join(claim["given"])} if claim else {}
            found.append(place | {**claim, **given} | ruling)
    return found


def _csv(document: Document, units: Sequence[Component]) -> str:
    rows = _rows(document)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    # A text that begins like a formula is one for a spreadsheet: a quote before it makes it text.
    writer.writerows({name: _no_formula(part) for name, part in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    risky = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if risky else value


def _python(document: Document, units: Sequence[Component]) -> str:
    about, model = document, document["model"]
    head = f"{about['name']}: {len(units)} components of {model['name']}"
    named = {
        "MODEL": {"name": model["name"], "fingerprint": model["fingerprint"]},
        "LICENCE": about["licence"],
        "CITATION": about["citation"],
        "SIGN_CONVENTION": dict(about["sign_convention"]),
        "NAMES": [unit.name for unit in units],
        "COMPONENTS": [dict(row) for row in about["components"]],
    }
    parts = [f"{name} = {pprint.pformat(part, width=96, sort_dicts=False)}"
             for name, part in named.items()]  # fmt: skip
    return f"# {ascii(head)[1:-1]}\n\n" + "\n\n".join(parts) + "\n"


def _pyvene(document: Document, units: Sequence[Component], component: str = "") -> str:
    """``representations`` as IntervenableConfig takes them, and the features of each."""
    layers: dict[tuple[int, str], list[int]] = {}
    for unit in units:
        places = layers.setdefault((unit.layer, unit.site), [])
        places += range(unit.start, unit.stop)
    architecture = document["model"]["architecture"]
    representations = []
    for layer, site in layers:
        form = component or _MODULES.get(architecture, {}).get(site, "")
        if not form:
            raise LensSkillsError(
                f"which module of {architecture or document['model']['name']} holds {site!r} "
                "is not known here. Say component='…' with {layer} in it, such as "
                "'model.layers[{layer}].mlp.down_proj.input'."
            )
        if "{layer}" not in form:
            raise LensSkillsError(f"component={form!r} says no layer. Put {{layer}} into it.")
        module = form.replace("{layer}", str(layer))
        representations.append(
            {"layer": layer, "component": module, "unit": "pos", "max_number_of_units": 1}
        )
    made = {
        "representations": representations,
        "mode": "parallel",
        "subspaces": [sorted(places) for places in layers.values()],
        "positions": [
            sorted({row["position"] for row in document["components"]
                    if (row["layer"], row["site"]) == key})
            for key in layers
        ],
    }  # fmt: skip
    return _json(made)


def _lape(document: Document, units: Sequence[Component]) -> str:
    """Neurons by skill and layer: one skill here."""
    _neurons_only(units, "LAPE's lists")
    layers: list[list[int]] = [[] for _ in range(document["model"]["sizes"]["n_layers"])]
    for unit in units:
        layers[unit.layer].append(unit.start)
    return _json({"skills": [document["name"]], "neurons": [[sorted(one) for one in layers]]})


def _neuronpedia(
    document: Document,
    units: Sequence[Component],
    model: str = "",
    layer: str = "{layer}-neurons",
) -> str:
    """The body of a request that makes a list."""
    _neurons_only(units, "a list of Neuronpedia")
    if "{layer}" not in layer:
        raise LensSkillsError(f"layer={layer!r} says no layer. Put {{layer}} into it.")
    called = model or document["model"]["name"].rpartition("/")[2].lower()
    features = [
        {
            "modelId": called,
            "layer": layer.replace("{layer}", str(unit.layer)),
            "index": unit.start,
            "description": _said(row),
        }
        for unit, row in zip(units, document["components"], strict=True)
    ]
    about = [document["description"], document["citation"], f"licence {document['licence']}"]
    made = {"name": document["name"], "description": ". ".join(filter(None, about))}
    return _json({**made, "features": features})


def _said(row: Mapping[str, Any]) -> str:
    """What is known of a neuron in a line of plain text."""
    parts = []
    for one in row["associations"][:1]:
        if one["r"] is not None:
            ends = ""
            if one["low"] is not None and one["high"] is not None:
                ends = f" [{one['low']:+.2f}, {one['high']:+.2f}]"
            parts.append(f"r {one['r']:+.2f}{ends} with {one['metric']}")
    if (verdict := row["verdict"]) is not None and verdict["effect"] is not None:
        parts.append(
            f"{verdict['label']}: {verdict['edit']} changes {verdict['metric']} by "
            f"{verdict['effect']:+.3g} {verdict['unit']}"
        )
    return "; ".join(parts)


def _neurons_only(units: Sequence[Component], what: str) -> None:
    for unit in units:
        if unit.site != POST or unit.stop - unit.start != 1:
            raise LensSkillsError(
                f"{what} hold neurons of MLPs, and {unit.name} is at {unit.site!r}. Export to csv, "
                "python or pyvene."
            )


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


_FORMS: Mapping[str, Callable[..., str]] = {
    "csv": _csv,
    "python": _python,
    "pyvene": _pyvene,
    "lape": _lape,
    "neuronpedia": _neuronpedia,
}
