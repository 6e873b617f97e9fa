"""`Continuer`: batches of prompts, each continued until it ends."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lens_skills.activations.encoding import Encoded
from lens_skills.activations.readout import pad_left
from lens_skills.errors import LensSkillsError
from lens_skills.generation.choosing import chances, choose
from lens_skills.models.writing import Writer, end_tokens, writer_for


@dataclass(frozen=True)
class Written:
    """What was written after one prompt.

    Attributes:
        text: Without special tokens.
        tokens: Its tokens; the one that ended it is not among them.
        ended: Whether it ended by itself, and was not cut off.
        log_probabilities: Of each token as the model gave it, before temperature and cutting
            (nats); where the text ended by itself, the last one is that of ending.
        entropies: Of the distribution each was drawn from, likewise (nats).
    """

    text: str
    tokens: Sequence[int]
    ended: bool
    log_probabilities: Sequence[float]
    entropies: Sequence[float]

    def plain(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return asdict(self)


class Continuer:
    """Continues batches of prompts by one model with one set of settings."""

    def __init__(
        self,
        lens: Any,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        chat: bool,
    ) -> None:
        self.lens, self.n, self.seed = lens, max_new_tokens, seed
        self.temperature, self.top_p = temperature, top_p
        self.ends = sorted(end_tokens(lens, chat=chat))
        self.kind: type[Writer] | None = None

    def write(self, batch: Sequence[Encoded]) -> list[Written]:
        """One text per prompt, in the order of the batch."""
        lens = self.lens
        tokens, mask = pad_left([i.prompt_tokens.tolist() for i in batch], lens.pad_id, lens.device)
        if self.kind is None:
            self.kind = writer_for(lens, tokens, mask)
        writer = self.kind(lens, tokens, mask)
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
            writer.add(token.to(lens.device), live.to(lens.device))
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
        first = self.lens.first_word
        prompt = [token for token in item.prompt_tokens.tolist() if token < first]
        before, whole = self._decode(prompt), self._decode([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self._decode(tokens)

    def _decode(self, tokens: list[int]) -> str:
        return self.lens.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
