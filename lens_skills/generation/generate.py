"""`generate`: what a model writes for each example, how sure it was, and what graders find.

`capture_text` reads activations over the very tokens it wrote.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills import engines, settings
from lens_skills.activations import DEFAULT_SITE, ActivationTable, find_site, parse_position
from lens_skills.activations.capture import write_table
from lens_skills.activations.continuations import pad_left
from lens_skills.activations.forward import NOTHING, Encoded, encode_examples
from lens_skills.activations.halved_batches import HalvedBatches
from lens_skills.activations.locations import Count
from lens_skills.activations.stream import read_sites
from lens_skills.checkpoints import Checkpoint, resumable
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.generation.graded import Graded, Written, grade, named_graders
from lens_skills.models import Chat, ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.models.identity import check_reading
from lens_skills.models.text_writer import Writer, end_tokens, writer_for
from lens_skills.progress import Progress
from lens_skills.results import provenance

LIKELIEST = 2048  # tokens looked at first


@resumable(free=("graders", "config(batch_size)"))
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
    chat: Chat = False,
    checkpoint: str | Path | None = None,
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
        chat: Read prompts in the tokenizer's chat template (for models tuned to follow it); a
            text: with this system prompt.
        checkpoint: A folder that keeps what is written, each minute and when something fails;
            called again with the same arguments, writing goes on from there.

    Returns:
        `Graded`. A grader that fails on a text leaves that grade missing and a line in
        ``problems``; nothing else is lost.

    Raises:
        LensSkillsError: No examples, ids that repeat, a prompt whose text would not fit the
            context, sampling settings out of range, logits that are not finite.

    Source: nucleus sampling, Holtzman et al. 2020 (arXiv 1904.09751).
    """
    if max_new_tokens < 1:
        raise LensSkillsError(f"max_new_tokens is at least 1, not {max_new_tokens}.")
    if not (temperature >= 0 and temperature < float("inf")):
        raise LensSkillsError(f"temperature is 0 (the likeliest token) or more, not {temperature}.")
    if not 0 < top_p <= 1:
        raise LensSkillsError(f"top_p is a share above 0 and up to 1, not {top_p}.")
    ids = [example.id for example in examples]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise LensSkillsError(f"the id {twice!r} is used twice. Give each example its own.")
    named = named_graders(graders)
    adapter = with_soft_prompt(model, prompt, chat)
    encoded = encode_examples(adapter, examples, answers=False)
    for item in encoded:
        if len(item.prompt_tokens) + max_new_tokens > adapter.n_ctx:
            raise LensSkillsError(
                f"example {item.id!r} has {len(item.prompt_tokens)} tokens and is to be continued "
                f"by {max_new_tokens}, but the model reads at most {adapter.n_ctx}. Shorten it, or "
                "lower max_new_tokens."
            )
    asked = {
        **provenance(examples, adapter),
        "prompt": None if adapter.soft is None else adapter.soft.digest,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    versions = asked.pop("versions")  # other ones may go on with a checkpoint
    saved = Checkpoint.at(asked, name="texts")
    kept = None if saved is None else saved.read()
    done = {} if kept is None else {int(i): Written(**row) for i, row in kept[1]["done"].items()}
    # Batches of like length, whatever is done already: padding is kept small.
    left = [item for item in encoded if item.index not in done]
    left.sort(key=lambda item: (len(item.prompt_tokens), item.index))
    size = settings.batch_size(16)
    parts = [left[start : start + size] for start in range(0, len(left), size)]
    writing = _Writing(examples, [[item.index for item in part] for part in parts], {
        "n": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
    })  # fmt: skip
    try:
        for texts in _texts(adapter, encoded, writing, len(done)):
            done |= texts
            if saved is not None and saved.due():
                saved.write({}, {"done": _plain(done)})
    finally:
        # Also after an interruption; and before the graders, which may be interrupted too.
        if saved is not None and done:
            saved.write({}, {"done": _plain(done)})
    written = [done[item.index] for item in encoded]
    made_by = {**asked, "implementation": adapter.implementation, "versions": versions}
    return grade(Graded.of(examples, written, made_by), named)


@dataclass(frozen=True)
class _Writing:
    """The texts of some batches; a shard is some of the batches.

    Attributes:
        examples: All examples.
        batches: Which of them stand in each batch.
        settings: Of the `Continuer`.
    """

    examples: Sequence[Example]
    batches: list[list[int]]
    settings: dict[str, Any]

    def open(self, adapter: ModelAdapter) -> tuple["Continuer", list[Encoded]]:
        encoded = encode_examples(adapter, self.examples, answers=False)
        return Continuer(adapter, **self.settings), encoded

    def run(
        self, opened: tuple["Continuer", list[Encoded]], shard: range, tick: engines.Tick
    ) -> dict[int, Written]:
        continuer, encoded = opened
        found: dict[int, Written] = {}
        for number in shard:
            batch = [encoded[index] for index in self.batches[number]]
            found |= dict(zip(self.batches[number], continuer.write(batch), strict=True))
            tick(len(batch))
        return found


def _texts(
    adapter: ModelAdapter, encoded: list[Encoded], work: _Writing, done: int
) -> Iterator[dict[int, Written]]:
    """What is written, batch by batch, or shard by shard where `lens_skills.config` says so."""
    engine, sizes = engines.chosen(adapter), [len(batch) for batch in work.batches]
    if engine is None or len(sizes) < 2:
        opened = Continuer(adapter, **work.settings), encoded
        with Progress(len(encoded), "write", "texts", done=done) as bar:
            for number in range(len(sizes)):
                yield work.run(opened, range(number, number + 1), bar.update)
        return
    shards = engines.cut(range(len(sizes)), engine.n_shards())
    found = engine.run(
        adapter, work, shards, [sum(sizes[shard.start : shard.stop]) for shard in shards],
        verb="write", unit="texts", done=done, total=len(encoded),
    )  # fmt: skip
    with engines.ended_by_interrupt(engine):
        for each in found:
            yield each.part


def _plain(done: dict[int, Written]) -> dict[str, Any]:
    return {str(index): asdict(written) for index, written in done.items()}


def capture_text(
    model: Any,
    graded: Graded,
    path: str | Path,
    *,
    at: str = DEFAULT_SITE,
    position: str | Count = "mean",
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
        position: ``"mean"``, ``"max"`` or ``count(…)`` over the tokens of the text, or its
            ``"last"`` token.
        layers: Which layers (default all).
        prompt: The soft prompt it wrote with.

    Raises:
        LensSkillsError: Another model or soft prompt than the one that wrote; a folder that
            exists; no text.

    Does not show: what made the model write a skill. On the text itself neurons see the skill.
    """
    chat = graded.provenance.get("chat", False)
    adapter, folder = with_soft_prompt(model, prompt, chat), Path(path)
    check_reading(graded.provenance, adapter, "what was written")
    if adapter.fingerprint() != graded.provenance.get("model_fingerprint"):
        raise LensSkillsError(
            f"these texts were written by {graded.provenance.get('model')}, not by {adapter.name}. "
            "Give the model, and with prompt= the soft prompt, they were written with."
        )
    if folder.exists():
        raise LensSkillsError(f"{folder} exists already. Remove it or choose another path.")
    reading = parse_position(position)
    if reading.labels[0] not in ("mean", "max", "last") and reading.pool != "count":
        raise LensSkillsError(
            f"texts are read at 'mean', 'max', 'last' or count(0.5), not at {position!r}."
        )
    site = find_site(adapter, at, layers)
    kept = [place for place, tokens in enumerate(graded.tokens) if tokens]
    if not kept:
        raise LensSkillsError("no text was written: there is nothing to read.")
    encoded = encode_examples(adapter, graded.examples, answers=False)
    items, places = [], {}
    for place in kept:
        item, written = encoded[place], np.asarray(graded.tokens[place], dtype=np.int32)
        item = replace(item, prompt_tokens=np.concatenate([item.prompt_tokens, written]))
        end = len(item.prompt_tokens)
        places[place] = [[end - 1] if position == "last" else list(range(end - len(written), end))]
        items.append(item)
    found: dict[int, np.ndarray] = {}
    size = settings.batch_size(16)
    for batch in read_sites(adapter, items, NOTHING, [site], reading, places, batch_size=size):
        numbers = batch.activations.cpu().to(torch.float32).numpy()
        found.update(zip(batch.index.tolist(), numbers, strict=True))
    numbers = np.stack([found[place] for place in kept])
    examples = [graded.examples[place] for place in kept]
    return write_table(folder, adapter, site, reading, examples, numbers)


def chances(id: str, n: int, *, seed: int) -> Float[Tensor, " step"]:
    """One number in [0, 1) per token, the same for an example in whatever batch it stands.

    >>> chances("a", 3, seed=0).equal(chances("a", 5, seed=0)[:3])
    True
    """
    digest = hashlib.sha256(f"{seed}\0{id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(n, generator=generator, dtype=torch.float64)


def choose(
    log_probabilities: Float[Tensor, "batch d_vocab"],
    chance: Float[Tensor, " batch"],
    *,
    temperature: float,
    top_p: float,
) -> Int[Tensor, " batch"]:
    """One token per row.

    With temperature T the distribution is p^(1/T), normalised; of it only the likeliest tokens
    are kept whose share first reaches ``top_p`` (nucleus sampling), and ``chance`` is looked up in
    their cumulative distribution.

    Source: Holtzman et al. 2020, arXiv 1904.09751 (nucleus sampling).

    Args:
        log_probabilities: Of the next token, float64.
        chance: Uniform in [0, 1), one per row.
        temperature: 0 takes the likeliest token.
        top_p: 1 keeps all tokens.

    >>> spread = torch.tensor([[0.6, 0.3, 0.1]]).double().log()
    >>> chances = torch.tensor([0, 0.7, 0.99]).double()
    >>> [int(choose(spread, u[None], temperature=1, top_p=0.9)) for u in chances]
    [0, 1, 1]
    """
    if temperature == 0:
        return log_probabilities.argmax(-1)
    p = (log_probabilities / temperature).softmax(-1)
    if top_p < 1:
        # Sorting a whole vocabulary takes as long as a layer; a few thousand tokens mostly do.
        ordered, order = p.topk(min(LIKELIEST, p.shape[-1]), dim=-1)
        if bool((ordered.sum(-1) < top_p).any()):
            ordered, order = p.sort(dim=-1, descending=True)
        # A token is kept where those before it have not reached the share yet.
        kept = ordered.cumsum(-1) - ordered < top_p
        p = p * torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, kept)
    # In the vocabulary's order, not by size: two nearly equal tokens, whose order rounding may
    # turn, then do not trade places between one batch and another.
    below = p.cumsum(-1)
    whole = below[:, -1:]
    # A product may round up to the whole, and would then fall behind the last token kept.
    point = torch.minimum(chance[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return (below <= point).sum(-1)


@dataclass
class Continuer:
    """Continues batches of prompts by one model with one set of settings."""

    adapter: Any
    n: int
    temperature: float
    top_p: float
    seed: int
    kind: type[Writer] | None = None

    def __post_init__(self) -> None:
        self.ends = sorted(end_tokens(self.adapter))
        self.halves = HalvedBatches(self.adapter.device)

    def write(self, batch: Sequence[Encoded]) -> list[Written]:
        """One text per prompt, in the order of the batch; in parts where memory runs out."""
        return [text for part in self.halves.run(batch, self._write) for text in part]

    def _write(self, batch: Sequence[Encoded]) -> list[Written]:
        adapter = self.adapter
        tokens, mask = pad_left(
            [i.prompt_tokens.tolist() for i in batch], adapter.pad_id, adapter.device
        )
        if self.kind is None:
            self.kind = writer_for(adapter, tokens, mask)
        writer = self.kind(adapter, tokens, mask)
        draws = torch.stack([chances(item.id, self.n, seed=self.seed) for item in batch])
        live = torch.ones(len(batch), dtype=torch.bool)
        chosen, sure, unsure, lives = [], [], [], []
        for step in range(self.n):
            spread = self._spread(writer.logits, batch, live)
            token = choose(spread, draws[:, step], temperature=self.temperature, top_p=self.top_p)
            chosen.append(token)
            sure.append(spread.gather(-1, token[:, None])[:, 0])
            unsure.append(-(spread.exp() * spread.clamp(min=-1e4)).sum(-1))
            lives.append(live)
            live = live & ~torch.isin(token, torch.tensor(self.ends, dtype=torch.long))
            if not live.any() or step == self.n - 1:
                break
            writer.add(token.to(adapter.device), live.to(adapter.device))
        columns = [torch.stack(part, dim=1) for part in (chosen, sure, unsure, lives)]
        rows = zip(*columns, live.tolist(), strict=True)
        return [self._written(item, *row) for item, row in zip(batch, rows, strict=True)]

    def _spread(self, logits: Tensor, batch: Sequence[Encoded], live: Tensor) -> Tensor:
        """Log-probabilities of the next token, float64 on the CPU; refused where not finite."""
        logits = logits.cpu()
        wrong = (live & torch.isnan(logits).any(-1)).nonzero()
        if len(wrong):
            raise LensSkillsError(
                f"the model's logits are not finite for example {batch[int(wrong[0])].id!r}: "
                "nothing can be written from them. Check its weights, dtype and hooks."
            )
        return logits.double().log_softmax(-1)

    def _written(
        self, item: Encoded, chosen: Tensor, sure: Tensor, unsure: Tensor, lives: Tensor, cut: bool
    ) -> Written:
        n = int(lives.sum())
        tokens = chosen[:n].tolist()
        ended = not cut
        if ended:
            tokens = tokens[:-1]
        return Written(
            text=self._text(item, tokens),
            tokens=tokens,
            ended=ended,
            log_probabilities=sure[:n].tolist(),
            entropies=unsure[:n].tolist(),
        )

    def _text(self, item: Encoded, tokens: list[int]) -> str:
        """What the tokens add to the prompt: read alone, a first token may lose its space."""
        first = self.adapter.first_word
        prompt = [token for token in item.prompt_tokens.tolist() if token < first]
        before, whole = self._decode(prompt), self._decode([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self._decode(tokens)

    def _decode(self, tokens: list[int]) -> str:
        return self.adapter.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
