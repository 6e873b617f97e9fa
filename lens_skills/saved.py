"""`load`: any saved result, opened by its folder alone."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lens_skills.activations.activation_table import MANIFEST, ActivationTable
from lens_skills.errors import LensSkillsError
from lens_skills.file_names import check_links, place_to_read
from lens_skills.results import Result, is_saved, kind_of, undamaged

# The room of every kind of result.
_ROOMS = {
    "circuits": ("Circuit", "Faithfulness"),
    "diagnostics": (
        "Dissection",
        "Memorisation",
        "MinimalSet",
        "Redundancy",
        "Regulators",
        "Segmentation",
        "SparseProbe",
    ),
    "explanation": ("ActivatingExamples", "Explanations", "Rationales", "Shortcuts", "TokenLogits"),
    "finetuning": ("Continual", "FineTuned"),
    "generation": ("Graded",),
    "interventions": ("Audit", "DamageMatrix", "DoseResponse", "Effects", "Prescreen", "Verdict"),
    "models": ("SoftPrompt",),
    "ranking": ("MethodComparison", "Ranking"),
    "resampling": ("Stability",),
    "scoring": (
        "LayerProfile",
        "PartialScores",
        "Predictivity",
        "ScoreComparison",
        "Scores",
        "Selection",
        "SkillMatrix",
    ),
    "soft_prompts": ("PromptComparison",),
    "studies": ("Study",),
    "tasks": ("Preflight", "PseudoLabels"),
}
KINDS = {kind: room for room, kinds in _ROOMS.items() for kind in kinds}
_RUN, _PUBLISHED = "run.json", "neurons.json"


def load(folder: str | Path | Sequence[str | Path]) -> Any:
    """The result in a folder that ``.save(folder)`` wrote, whatever its kind.

    Also a table of activations that `capture` or another program wrote, and several folders of
    shards that fit each other as one table; and the folder of a run of the shell, as a dict of the
    results in it by the name of their folders (``explore``, ``selection-…``).

    >>> import tempfile
    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.arithmetic()[:40]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = ls.preflight(model, task).save(f"{folder}/preflight")
    ...     type(ls.load(path)).__name__
    'Preflight'

    Raises:
        LensSkillsError: No such folder; nothing saved in it (what it holds); an older or a newer
            format (which, and what to do); a damaged result; shards that do not fit each other
            (which, and why).
    """
    if not isinstance(folder, str | Path):  # several, whose shards are one table
        return ActivationTable.load(*folder)
    place = place_to_read(folder)
    with undamaged(place):
        return _load(place)


def _load(place: Path) -> Any:
    if (place / MANIFEST).exists():
        return ActivationTable.load(place)
    if (place / _RUN).exists():
        return _of_a_run(place)
    if (place / _PUBLISHED).exists():
        return import_module(f"{__package__}.publishing").NeuronSet.load(place)
    kind = kind_of(place)
    if kind not in KINDS:
        raise LensSkillsError(
            f"{place} holds a saved {kind}, which this version of lens-skills does not know. It "
            f"knows: {', '.join(sorted(KINDS))}."
        )
    result: type[Result] = getattr(import_module(f"lens_skills.{KINDS[kind]}"), kind)
    return result.load(place)


def _of_a_run(folder: Path) -> dict[str, Any]:
    inside = {path.name: path for path in sorted(folder.iterdir()) if is_saved(path)}
    check_links(folder, inside.values(), _RUN)
    if not inside:
        first = folder / "explore"
        if first.exists():
            kind_of(first)  # says what is there instead
        raise LensSkillsError(f"the run {folder} holds no result yet.")
    return {name: load(path) for name, path in inside.items()}
