"""How a `NeuronSet` lies on disk: JSON by a published schema, and its tensors beside it."""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.results import check_replaceable, read_folder, write_folder

FORMAT, VERSION = "lens-skills/neuron-set", 1
NAME = "neurons"
"""Of both files: ``neurons.json`` and ``neurons.safetensors``."""

_NEURON = re.compile(r"L(\d+)N(\d+)")

LARGEST = 64 * 2**20
"""Bytes of the JSON that are read at most."""


@cache
def schema() -> Mapping[str, Any]:
    """The JSON Schema of version 1."""
    text = (
        files("lens_skills.publishing")
        .joinpath(f"neuron_set-{VERSION}.schema.json")
        .read_text("utf-8")
    )
    return dict(json.loads(text))


def check(document: Any) -> None:
    """Nothing; raises where a document does not keep to the schema.

    Raises:
        LensSkillsError: Where, and what is wrong there.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    wrong = best_match(Draft202012Validator(schema()).iter_errors(document))
    if wrong is not None:
        place = ".".join(map(str, wrong.absolute_path)) or "the whole"
        raise LensSkillsError(
            f"{place} does not keep to the schema of a NeuronSet, version {VERSION}: "
            f"{wrong.message[:300]}."
        )
    for one in document["components"]:
        if one["stop"] <= one["start"]:
            raise LensSkillsError(f"{one['name']} ends before it begins ({one['start']} on).")
        named = _NEURON.fullmatch(one["name"])
        if named and (int(named[1]), int(named[2])) != (one["layer"], one["start"]):
            raise LensSkillsError(
                f"the file calls {one['name']} what is neuron {one['start']} of layer "
                f"{one['layer']}: it was changed by hand. Get the set again from where it was "
                "published."
            )


def write(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Both files, whole or not at all, in place of a set that was there.

    Raises:
        LensSkillsError: The folder cannot be written, or holds something else.
    """
    check_replaceable(folder, NAME)
    return write_folder(folder, NAME, tensors, document)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` wrote.

    Raises:
        LensSkillsError: There is none (what is there); another format or a newer version;
            one that was cut or changed.
    """
    path = folder / f"{NAME}.json"
    if not path.is_file():
        there = "there is no such folder"
        if folder.is_dir():
            names = sorted(found.name for found in folder.iterdir())
            there = f"it holds {', '.join(names[:6]) or 'nothing'}"
        elif folder.exists():
            there = "it is a file"
        raise LensSkillsError(
            f"no NeuronSet in {folder}: {there}. A set is a folder with {NAME}.json and "
            f"{NAME}.safetensors."
        )
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise LensSkillsError(
            f"{path} is damaged ({str(error)[:120]}). Get the set again from where it was "
            "published."
        ) from error
    _check_version(path, document)
    if not isinstance(document.pop("digest", None), str):
        raise LensSkillsError(f"{path} is damaged: it has no digest.")
    if not (folder / f"{NAME}.safetensors").is_file():
        raise LensSkillsError(
            f"{folder} holds {NAME}.json, and {NAME}.safetensors is missing: it was copied in "
            "part. Get the set again from where it was published, both files."
        )
    try:
        tensors, _ = read_folder(folder, NAME)
    except LensSkillsError as error:
        if error.__cause__ is None:  # not damaged: a link out of the folder
            raise
        raise LensSkillsError(
            f"the NeuronSet in {folder} is damaged: its two files are not as they were written "
            f"({str(error.__cause__)[:120]}). Get the set again from where it was published."
        ) from error
    return document, tensors


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _check_version(path: Path, document: Any) -> None:
    said = document if isinstance(document, dict) else {}
    if said.get("format") != FORMAT:
        raise LensSkillsError(
            f"{path} is no NeuronSet: its format is {str(said.get('format'))[:60]!r}, not "
            f"{FORMAT!r}."
        )
    number = said.get("version")
    if number != VERSION or isinstance(number, bool):
        newer = isinstance(number, int) and number > VERSION
        raise LensSkillsError(
            f"{path} is of version {str(number)[:20]} of the format; this lens-skills reads "
            f"{VERSION}. "
            + ("Update it: pip install -U lens-skills." if newer else "There is no such version.")
        )
