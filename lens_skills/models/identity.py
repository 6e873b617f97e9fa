"""Which model a result is of, and how it was read."""

from collections.abc import Mapping
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import ModelAdapter


def identity(adapter: ModelAdapter) -> dict[str, Any]:
    """Which model a result is of: its name and fingerprint, those of its parts, and how it reads.

    With a soft prompt, ``model_fingerprint`` is of both together, ``weights`` of the bare model and
    ``prompt`` of the soft prompt, and ``features`` of dictionaries. ``chat`` and ``precision`` are
    as in `ModelAdapter`.
    """
    own, soft = adapter.fingerprint(), adapter.soft
    bare = adapter.without_features().fingerprint() if adapter.features else own
    return {
        "model": adapter.name,
        "model_fingerprint": own,
        "weights": bare if soft is None else soft.model_fingerprint,
        "prompt": None if soft is None else soft.digest,
        **({"features": _held(adapter)} if adapter.features else {}),
        **adapter.reading,
        "d_head": adapter.d_head,
        "precision": adapter.precision,
    }


def check_reading(about: Mapping[str, Any], adapter: ModelAdapter, what: str) -> None:
    """Nothing; raises where something was made in a chat and is used without, or in another.

    Args:
        about: The provenance of what was made.
        adapter: What reads now.
        what: What was made, as it begins a sentence: ``"the selection"``.
    """
    here, there = adapter.chat, about.get("chat", False)
    if here != there:
        raise LensSkillsError(
            f"{what} was made with chat={there!r}, but chat={here!r} is asked for here: these are "
            f"other tokens, and numbers of the two do not mix. Say chat={there!r}."
        )
    if "template" in about and about["template"] != adapter.reading.get("template"):
        raise LensSkillsError(
            f"{what} was made with another chat template than the tokenizer of {adapter.name} has "
            "now. Set the template of then, or make it anew."
        )


def _held(adapter: ModelAdapter) -> dict[str, dict[str, Any]]:
    """By hook point, what its dictionary is."""
    return {
        name: {
            "reads": one.hook_name,
            "writes": one.hook_name_out,
            "architecture": one.architecture,
            "features": one.d_sae,
            "digest": one.digest,
        }
        for name, one in adapter.features.items()
    }
