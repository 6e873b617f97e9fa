"""`load_dictionary`: an SAE or a transcoder from a folder of SAELens, or of `Dictionary.save`."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.file_names import check_links, place_to_read
from lens_skills.models.dictionaries import (
    CONFIG,
    NEEDS,
    TRANSCODERS,
    WEIGHTS,
    Architecture,
    Dictionary,
    Normalisation,
)


def load_dictionary(
    folder: str | Path,
    *,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    name: str | None = None,
) -> Dictionary:
    """An SAE or a transcoder from a folder on this disk: ``cfg.json``, ``sae_weights.safetensors``.

    What SAELens saves, of version 6 and before, without SAELens. Architectures ``standard``,
    ``jumprelu`` (and what is saved as such), ``topk``, ``gated``, ``transcoder``,
    ``skip_transcoder`` and ``jumprelu_transcoder`` are read; anything that would be computed
    otherwise is refused and named.

    Args:
        folder: The folder.
        hook_name: What is read, in full (``"blocks.12.hook_resid_post"``); default: what the
            folder says.
        hook_name_out: What is written, likewise.
        name: The site that the features are called by; default ``"features"``.

    Raises:
        LensSkillsError: No such folder or file, a file that is damaged or would run code as it is
            opened (``.pt``), an architecture, activation function or normalisation that is not
            known here, a part that is missing or of another shape, numbers that are not finite.

    Source: the format, and what each architecture computes: SAELens (Bloom, Tigges, Duong & Chanin
    2024); architectures as in `Dictionary`.

    Does not show: whether it was trained on the weights it is used with. Most were on a model
    whose norms are not folded and whose weights are not centred.

    >>> load_dictionary("no/such/folder")
    Traceback (most recent call last):
    ...
    lens_skills.errors.LensSkillsError: no folder no/such/folder: an SAE is a folder of cfg.json \
and sae_weights.safetensors, as SAELens and Dictionary.save write it.
    """
    place = place_to_read(folder)
    config = _flat(_read_config(place))
    parts = _read_weights(place / WEIGHTS)
    kind = str(config.get("architecture", "standard"))
    architecture = TRANSCODERS.get(kind, kind)
    _refuse_unknown(place, config, kind, architecture)
    if config.get("rescale_acts_by_decoder_norm") and {"W_enc", "W_dec", "b_enc"} <= set(parts):
        length = parts["W_dec"].norm(dim=-1)
        parts["W_enc"], parts["b_enc"] = parts["W_enc"] * length, parts["b_enc"] * length
        parts["W_dec"] = parts["W_dec"] / length[:, None]
    skip = parts.pop("W_skip", None) if "skip" in kind else None
    wanted = {"W_enc", "W_dec", "b_dec", *NEEDS[architecture]}
    if missing := sorted(wanted - set(parts)):
        raise LensSkillsError(
            f"{place / WEIGHTS} holds no {missing[0]}, which {kind!r} needs (found: "
            f"{', '.join(sorted(parts)) or 'nothing'})."
        )
    if more := sorted(set(parts) - wanted):
        raise LensSkillsError(
            f"{place / WEIGHTS} holds {more[0]!r}, which {kind!r} has no use for here: features "
            "computed without it would be others. Save the dictionary without it, folded in."
        )
    if skip is not None and not bool(skip.isfinite().all()):
        raise LensSkillsError(f"W_skip in {place / WEIGHTS} holds numbers that are not finite.")
    reads = hook_name or config.get("hook_name")
    if not isinstance(reads, str):
        raise LensSkillsError(
            f"{place / CONFIG} does not say what is read: give hook_name='blocks.12.hook_…'."
        )
    writes = hook_name_out or config.get("hook_name_out") or ""
    if kind in TRANSCODERS and not writes:
        raise LensSkillsError(
            f"{place / CONFIG} is of a {kind} and does not say what is written: give "
            "hook_name_out='blocks.12.hook_mlp_out'."
        )
    transcodes = kind in TRANSCODERS or writes not in ("", reads)
    with _in_folder(place):
        made = Dictionary(
            **parts,
            hook_name=reads,
            hook_name_out=writes,
            architecture=architecture,
            k=config.get("k") if architecture == "topk" else None,
            apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", not transcodes)),
            normalize_activations=config.get("normalize_activations") or "none",
            name=name or str(config.get("name", "features")),
            model=str(config.get("model_name") or ""),
        )
        _check_sizes(made, config)
    return made


_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_out": "hook_name_out",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""What older versions of SAELens called the same."""


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of any version: its own words and those of its metadata, today's names."""
    about = config.get("metadata")
    both: dict[str, Any] = {**(about if isinstance(about, dict) else {}), **config}
    found = {_RENAMED.get(name, name): value for name, value in both.items()}
    options = found.get("activation_fn_kwargs")
    if found.get("activation_fn") == "topk" and isinstance(options, dict) and "k" in options:
        found |= {"architecture": "topk", "k": options["k"]}
    if isinstance(found.get("normalize_activations"), bool):
        on = found["normalize_activations"]
        found["normalize_activations"] = "expected_average_only_in" if on else "none"
    return found


def _refuse_unknown(place: Path, config: Mapping[str, Any], kind: str, architecture: str) -> None:
    """Nothing; raises where features would be computed otherwise than here."""
    known = (*get_args(Architecture), *TRANSCODERS)
    if kind not in known:
        raise LensSkillsError(
            f"{place} is of the architecture {kind!r}, which is not read here."
            f"{did_you_mean(kind, known)} There are: {', '.join(known)}."
        )
    function = config.get("activation_fn", "relu")
    if function not in ("relu", "topk"):
        raise LensSkillsError(
            f"{place} has the activation function {function!r}: 'relu' and 'topk' are read here."
        )
    kinds = get_args(Normalisation)
    scaling = config.get("normalize_activations") or "none"
    if scaling not in kinds:
        raise LensSkillsError(
            f"{place} normalises what it reads by {scaling!r}, whose numbers the folder does not "
            "hold. Fold them into the weights where it was trained "
            "(sae.fold_activation_norm_scaling_factor(…)), and save it again. Read here are: "
            f"{', '.join(kinds)}."
        )
    for name, meaning in (
        ("hook_head_index", "reads a single head"),
        ("finetuning_scaling_factor", "has a finetuning scale"),
    ):
        if config.get(name) not in (None, False):
            raise LensSkillsError(
                f"{place} {meaning} ({name} = {config[name]!r}), which is not read here."
            )
    layers = config.get("hook_layer_out"), config.get("hook_layer")
    if None not in layers and layers[0] != layers[1]:
        raise LensSkillsError(
            f"{place} reads layer {layers[1]} and writes layer {layers[0]}: transcoders of one "
            "block are read here."
        )


def _read_config(place: Path) -> dict[str, Any]:
    what = f"an SAE is a folder of {CONFIG} and {WEIGHTS}, as SAELens and Dictionary.save write it"
    if not place.is_dir():
        raise LensSkillsError(f"no folder {place}: {what}.")
    files = sorted(path.name for path in place.iterdir())
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            code = [file for file in files if file.endswith((".pt", ".pth", ".bin", ".pkl"))]
            ran = f" {code[0]} would run code as it is opened, and is not." if code else ""
            raise LensSkillsError(
                f"{place} holds no {name} (found: {', '.join(files[:8]) or 'nothing'}).{ran} "
                f"{what[0].upper()}{what[1:]}."
            )
    check_links(place, [place / CONFIG, place / WEIGHTS], CONFIG)
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LensSkillsError(f"{place / CONFIG} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise LensSkillsError(f"{place / CONFIG} holds no settings, but {type(config).__name__}.")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        parts = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise LensSkillsError(
            f"{path} cannot be read ({error}): it is cut short or no safetensors file. Copy it "
            "again."
        ) from error
    # For a while SAELens saved a factor of 1 with every SAE.
    factor = parts.get("scaling_factor")
    if factor is not None and bool((factor == 1).all()):
        del parts["scaling_factor"]
    return parts


@contextmanager
def _in_folder(place: Path) -> Iterator[None]:
    """Inside, an error says of which folder it is."""
    try:
        yield
    except LensSkillsError as error:
        raise LensSkillsError(f"the dictionary in {place}: {error}") from error


def _check_sizes(made: Dictionary, config: Mapping[str, Any]) -> None:
    for name in ("d_in", "d_sae", "d_out"):
        said = config.get(name)
        if said is not None and said != getattr(made, name):
            raise LensSkillsError(
                f"{CONFIG} says {name} = {said!r}, and the weights have {getattr(made, name)}: "
                "they do not belong together."
            )
    if config.get("model_from_pretrained_kwargs"):
        warnings.warn(
            f"{made} was trained on a model opened with "
            f"{config['model_from_pretrained_kwargs']}: open it likewise.",
            UserWarning,
            stacklevel=4,
        )
