"""`generate`: what a model writes for each example, how sure it was, and what graders find."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lens_skills.activations.encoding import encode_examples
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.generation.choosing import check_sampling
from lens_skills.generation.continuation import Continuer, Written
from lens_skills.generation.graded import Graded
from lens_skills.generation.grading import grade, named_graders
from lens_skills.models import SoftPrompt, prompted
from lens_skills.scoring.checkpoint import Checkpoint
from lens_skills.scoring.provenance import examples_hash, versions


def generate(
    model: Any,
    examples: Sequence[Example],
    *,
    prompt: SoftPrompt | None = None,
    graders: Any = (),
    max_new_tokens: int = 60,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    batch_size: int = 16,
    chat: bool = False,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Graded:
    """What the model writes for each example, its confidence in it, and its grades.

    Each example draws from random numbers of its own (seed and id), so what is written for it
    does not depend on the batch it stands in. Hooks that are on the model act: an edit at position
    ``-1`` is then made at the last prompt token and at every token written.

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was.
        examples: A `Task` or any sequence of `Example`; answers are not used.
        prompt: A soft prompt to read every example with.
        graders: One or several functions ``(text, example) -> {skill: number}``, or a dict that
            names them; see `lens_skills.graders` for rules, labels from a file and a judge.
        max_new_tokens: Where a text is cut off that has not ended by itself.
        temperature: 0 writes the likeliest token each time.
        top_p: Share of probability from which tokens are drawn; 1 for all.
        seed: Of the draws.
        batch_size: Examples written at once.
        chat: Put prompts through the tokenizer's chat template (for models tuned to follow it).
        checkpoint: A folder that keeps what is written, each minute and when something fails;
            called again with the same arguments, writing goes on from there.
        progress: Show a progress bar (None: on a terminal only).

    Returns:
        `Graded`. A grader that fails on a text leaves that grade missing and a line in
        ``problems``; nothing else is lost.

    Raises:
        LensSkillsError: No examples, ids that repeat, a prompt whose text would not fit the
            context, sampling settings out of range, logits that are not finite.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise LensSkillsError("max_new_tokens and batch_size are at least 1.")
    check_sampling(temperature, top_p)
    ids = [example.id for example in examples]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise LensSkillsError(f"the id {twice!r} is used twice. Give each example its own.")
    named = named_graders(graders)
    lens = prompted(model, prompt)
    encoded = encode_examples(lens, examples, answers=False, chat=chat)
    for item in encoded:
        if len(item.prompt_tokens) + max_new_tokens > lens.n_ctx:
            raise LensSkillsError(
                f"example {item.id!r} has {len(item.prompt_tokens)} tokens and is to be continued "
                f"by {max_new_tokens}, but the model reads at most {lens.n_ctx}. Shorten it, or "
                "lower max_new_tokens."
            )
    asked = {
        "model": lens.name,
        "model_fingerprint": lens.fingerprint(),
        "prompt": None if lens.soft is None else lens.soft.digest,
        "task": getattr(examples, "name", "examples"),
        "split": getattr(examples, "split_name", "all"),
        "examples": examples_hash(examples),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "chat": chat,
    }
    saved = Checkpoint.at(checkpoint, asked)
    kept = None if saved is None else saved.read()
    done = {} if kept is None else {int(i): Written(**row) for i, row in kept[1]["done"].items()}
    # Batches of like length, whatever is done already: padding is kept small.
    left = [item for item in encoded if item.index not in done]
    left.sort(key=lambda item: (len(item.prompt_tokens), item.index))
    disable = None if progress is None else not progress
    continuer = Continuer(lens, max_new_tokens, temperature, top_p, seed, chat)
    with tqdm(total=len(encoded), desc="write", unit=" texts", disable=disable) as bar:
        bar.update(len(done))
        try:
            for start in range(0, len(left), batch_size):
                batch = left[start : start + batch_size]
                for item, written in zip(batch, continuer.write(batch), strict=True):
                    done[item.index] = written
                bar.update(len(batch))
                if saved is not None and saved.due():
                    saved.write({}, {"done": _plain(done)})
        finally:
            # Also after an interruption; and before the graders, which may be interrupted too.
            if saved is not None and done:
                saved.write({}, {"done": _plain(done)})
    written = [done[item.index] for item in encoded]
    provenance = {**asked, "implementation": lens.implementation, "versions": versions()}
    graded = grade(Graded.of(examples, written, provenance), named, progress=progress)
    if saved is not None:
        saved.remove()
    return graded


def _plain(done: dict[int, Written]) -> dict[str, Any]:
    return {str(index): written.plain() for index, written in done.items()}
