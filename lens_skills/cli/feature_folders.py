"""`--features`: folders of dictionaries, whose features a command reads like neurons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lens_skills.errors import LensSkillsError

NEURONS, FEATURES = "mlp.hook_post", "features"


def named_folder(text: str) -> tuple[str, str]:
    """The name of a dictionary's features and its folder, of ``FOLDER`` or ``NAME=FOLDER``.

    >>> named_folder("my_sae"), named_folder("mlp_features=my_transcoder")
    (('features', 'my_sae'), ('mlp_features', 'my_transcoder'))
    """
    name, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        return FEATURES, text
    return name, folder


def site_of(at: str | None, features: Sequence[str]) -> str:
    """The site that is asked for, or that is meant: the features where there are some.

    Raises:
        LensSkillsError: Features without a dictionary, a dictionary that nothing would read, or
            several to choose from.
    """
    names = list(dict.fromkeys(named_folder(text)[0] for text in features))
    if at is None and len(names) > 1:
        raise LensSkillsError(
            f"--features names {', '.join(names)}, and one site is read. Say --at {names[0]}."
        )
    site = at or (names[0] if names else NEURONS)
    if names and site not in names:
        raise LensSkillsError(
            f"--at {site} reads no features, but --features names {', '.join(names)}. Leave out "
            "one of the two."
        )
    if site == FEATURES and not names:
        raise LensSkillsError(
            "--at features needs the dictionary whose features they are: --features FOLDER."
        )
    return site


def open_dictionaries(features: Sequence[str]) -> list[Any]:
    """The dictionaries of some folders.

    Raises:
        LensSkillsError: As `load_dictionary`.
    """
    from lens_skills.models import load_dictionary

    return [load_dictionary(folder, name=name) for name, folder in map(named_folder, features)]


def featured(model: Any, features: Sequence[str]) -> Any:
    """The model with the features of some folders, or the model itself where there are none."""
    from lens_skills.models import with_features

    return with_features(model, *open_dictionaries(features)) if features else model
