"""`capture_text`: activations over the very tokens a model wrote."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lens_skills import settings
from lens_skills.activations import DEFAULT_SITE, ActivationTable, find_site, parse_position
from lens_skills.activations.activation_table import ARRAY, MANIFEST, manifest_of
from lens_skills.activations.forward import NOTHING
from lens_skills.activations.stream import read_sites
from lens_skills.activations.tokenization import encode_examples
from lens_skills.errors import LensSkillsError
from lens_skills.generation.graded import Graded
from lens_skills.models import SoftPrompt, with_soft_prompt
from lens_skills.results import work_folder


def capture_text(
    model: Any,
    graded: Graded,
    path: str | Path,
    *,
    at: str = DEFAULT_SITE,
    position: Literal["mean", "max", "last"] = "mean",
    layers: int | Iterable[int] | None = None,
    prompt: SoftPrompt | None = None,
) -> ActivationTable:
    """Activations over what was written, in a folder; `score` takes the table for a model.

    The model reads each prompt and its text once more, in exactly the tokens of then: chat
    template and soft prompt stand between the two as they did. Texts of no token are left out.
    Then: ``score(table, graded.task(), metrics="label:simile", position="mean")``.

    Args:
        model: The model that wrote.
        graded: What it wrote.
        path: A folder that is not there yet.
        at: Hook point within a block.
        position: Mean or maximum over the tokens of the text, or its last token.
        layers: Which layers (default all).
        prompt: The soft prompt it wrote with.

    Raises:
        LensSkillsError: Another model or soft prompt than the one that wrote; a folder that
            exists; no text.

    Does not show: what made the model write a skill. On the text itself neurons see the skill.
    """
    adapter, folder = with_soft_prompt(model, prompt), Path(path)
    if adapter.fingerprint() != graded.provenance.get("model_fingerprint"):
        raise LensSkillsError(
            f"these texts were written by {graded.provenance.get('model')}, not by {adapter.name}. "
            "Give the model, and with prompt= the soft prompt, they were written with."
        )
    if folder.exists():
        raise LensSkillsError(f"{folder} exists already. Remove it or choose another path.")
    if position not in ("mean", "max", "last"):
        raise LensSkillsError(f"texts are read at 'mean', 'max' or 'last', not at {position!r}.")
    site, reading = find_site(adapter, at, layers), parse_position(position)
    chat = bool(graded.provenance.get("chat"))
    kept = [place for place, tokens in enumerate(graded.tokens) if tokens]
    if not kept:
        raise LensSkillsError("no text was written: there is nothing to read.")
    encoded = encode_examples(adapter, graded.examples, answers=False, chat=chat)
    items, places = [], {}
    for place in kept:
        item, written = encoded[place], np.asarray(graded.tokens[place], dtype=np.int32)
        item = replace(item, prompt_tokens=np.concatenate([item.prompt_tokens, written]))
        end = len(item.prompt_tokens)
        places[place] = [[end - 1] if position == "last" else list(range(end - len(written), end))]
        items.append(item)
    found: dict[int, np.ndarray] = {}
    size = settings.batch_size(16)
    for batch, [(activations, _)], _ in read_sites(
        adapter, items, NOTHING, [site], reading, places, batch_size=size
    ):
        for item, numbers in zip(batch, activations.cpu().to(torch.float32), strict=True):
            found[item.index] = numbers.numpy()
    about = manifest_of(adapter, site, reading, [graded.examples[place] for place in kept], chat)
    with work_folder(folder) as work:
        np.save(work / ARRAY, np.stack([found[place] for place in kept]))
        (work / MANIFEST).write_text(json.dumps(about))
    return ActivationTable.load(folder)
