"""`prompted`: a model read with a soft prompt, for every verb."""

import copy
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.models.lens import as_lens
from lens_skills.models.protocol import Lens
from lens_skills.models.soft_prompt import SoftPrompt


def prompted(model: Any, prompt: SoftPrompt | None) -> Lens:
    """The model as every verb takes it, read with a soft prompt around each example.

    The model itself stays as it is: the vectors are put in place of token embeddings during each
    pass. What is measured this way has a fingerprint of its own, so that results with and without
    the prompt are never mixed.

    Args:
        model: A HookedTransformer, a TransformerBridge, or a Lens.
        prompt: The soft prompt; None for none.

    Raises:
        LensSkillsError: A prompt of another width or another model; a second prompt.
    """
    lens = as_lens(model)
    if prompt is None:
        return lens
    width = prompt.suffix.shape[1]
    if width != lens.d_model or prompt.prefix.shape[1] != lens.d_model:
        raise LensSkillsError(
            f"the soft prompt has vectors of width {width} ({prompt.model}), but {lens.name} reads "
            f"{lens.d_model}. Train one for this model: fit_prompt(model, …)."
        )
    if lens.soft is not None:
        if lens.soft.digest == prompt.digest:
            return lens
        raise LensSkillsError(f"{lens.name} is read with a soft prompt already; one at a time.")
    if prompt.model_fingerprint != lens.fingerprint():
        raise LensSkillsError(
            f"the soft prompt was made for other weights ({prompt.model}) than these of "
            f"{lens.name}. Open the model it was trained on, or train one for this model."
        )
    spoken: Any = copy.copy(lens)
    spoken.soft = prompt
    spoken.name = f"{lens.name} with soft prompt {prompt.digest[:8]}"
    return spoken
