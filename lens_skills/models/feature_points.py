"""`with_features`: a model whose dictionaries' features are hook points like its own.

A feature is read where its encoder reads, and a changed one adds Δf · W_dec where its decoder
writes: no module is added, and a pass in which nothing is changed is the model's own, bit for bit.
"""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import ModelAdapter
from lens_skills.models.backends import as_adapter
from lens_skills.models.dictionaries import Dictionary


def with_features(model: Any, *dictionaries: Any) -> ModelAdapter:
    """The model as every verb takes it, with the features of SAEs or transcoders to name.

    Features are a site: ``at="features"``, units ``"L12F345"``, scored, ablated, steered, patched,
    verified and explained like neurons. To change one by Δf adds Δf · W_dec to the hook point its
    dictionary writes; what the dictionary does not reconstruct stays as it is, so that without a
    change the model's logits are its own, bit for bit. The model itself is left as it was. What is
    measured this way has a fingerprint of its own, the dictionaries' included.

    Args:
        model: A HookedTransformer, a TransformerBridge, or what this function returned.
        dictionaries: Of `load_dictionary`, or made by hand; one or more.

    Raises:
        LensSkillsError: A hook point that this model does not have or never reaches, of another
            width than the dictionary, or written before it is read; two dictionaries that call
            the features of one block alike, or a hook point of the model.

    Warns:
        UserWarning: The dictionary says that it was trained on another model.

    Source: editing features with the error kept, Marks et al. 2024 (arXiv 2403.19647), section 3.1.

    Does not show: that the dictionary was trained on these weights, folded and centred as they are.

    >>> import torch
    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> weight = torch.eye(model.cfg.d_model)
    >>> sae = ls.Dictionary(weight, weight, "blocks.1.hook_resid_post")
    >>> featured = ls.with_features(model, sae)
    >>> task = ls.tasks.arithmetic("+-", digits=2, n=40)
    >>> ls.score(featured, task, metrics="label:op", at="features").n_units
    128
    """
    adapter = as_adapter(model)
    if not dictionaries:
        raise LensSkillsError("no dictionary is given: with_features(model, load_dictionary(…)).")
    found = dict(adapter.features)
    for one in dictionaries:
        if not isinstance(one, Dictionary):
            raise LensSkillsError(
                f"{one!r:.60} is no dictionary: load_dictionary('its/folder') makes one."
            )
        if one.hook_point in found:
            raise LensSkillsError(
                f"two dictionaries are called {one.hook_point!r}. Name one otherwise: "
                "load_dictionary(…, name='mlp_features')."
            )
        _check_fits(adapter, one)
        found[one.hook_point] = one
    other = copy.copy(adapter)
    other.features = found
    other.name = adapter.without_features().name + other.says_features
    return other


def _check_fits(adapter: ModelAdapter, one: Dictionary) -> None:
    bare = adapter.without_features()
    own = [name.split(".", 2)[2] for name in bare.hook_names() if name.startswith("blocks.")]
    if one.name in own:
        raise LensSkillsError(
            f"features cannot be called {one.name!r}: it is a hook point of {bare.name}. Give "
            "load_dictionary(…, name=…) another name."
        )
    if one.layer >= adapter.n_layers:
        raise LensSkillsError(
            f"{one} is of layer {one.layer}, and {adapter.name} has layers 0 to "
            f"{adapter.n_layers - 1}."
        )
    if adapter.implementation == "bridge" and one.hook_name_out.endswith("hook_resid_mid"):
        raise LensSkillsError(
            "'hook_resid_mid' of a TransformerBridge is what the second norm reads, and not the "
            "residual stream: features written there would not reach later blocks by themselves."
        )
    seen: dict[str, int] = {}

    def width(name: str) -> Callable[[Tensor], None]:
        def read(activation: Tensor) -> None:
            seen.setdefault(name, activation.flatten(2).shape[-1] if activation.ndim > 2 else 0)

        return read

    token = torch.tensor([[adapter.pad_id]], device=adapter.device)
    readers = {name: width(name) for name in dict.fromkeys((one.hook_name, one.hook_name_out))}
    mask = torch.ones_like(token, dtype=torch.bool)
    adapter.forward(token, mask, readers=readers, logits_at=None)
    for name, wanted in ((one.hook_name, one.d_in), (one.hook_name_out, one.d_out)):
        if seen[name] != wanted:
            raise LensSkillsError(
                f"{one} is made for width {wanted} at {name}, and {adapter.name} has "
                f"{seen[name]} there: it was trained on another model."
            )
    if next(iter(seen)) != one.hook_name:
        raise LensSkillsError(
            f"{one}: {adapter.name} reaches {one.hook_name_out} before {one.hook_name}, so what is "
            "read cannot change what is written."
        )
    here, there = (
        re.sub(r"\W", "", name.split("/")[-1]).lower() for name in (adapter.name, one.model)
    )
    if there and there not in here and here not in there:
        warnings.warn(
            f"{one} says that it was trained on {one.model!r}, not on {adapter.name!r}: its "
            "features may mean nothing here.",
            UserWarning,
            stacklevel=3,
        )
