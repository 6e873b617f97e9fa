"""`Words`: a soft prompt's vectors as words of their own, with ids past the vocabulary."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.models.floors import EMBEDDING
from lens_skills.models.protocol import Editor
from lens_skills.models.soft_prompt import SoftPrompt


class Words:
    """What a lens with a soft prompt understands beside its vocabulary.

    Attributes:
        soft: The soft prompt, if there is one.
        first_word: The id of its first vector: the first one no tokenizer gives.
        differentiable: Whether a pass can be differentiated by the soft prompt's vectors.
    """

    soft: SoftPrompt | None
    first_word: int
    differentiable: bool = False
    device: torch.device
    pad_id: int

    @property
    def words_before(self) -> list[int]:
        """The ids of the soft prompt's part before the input."""
        n_before = 0 if self.soft is None else len(self.soft.prefix)
        return list(range(self.first_word, self.first_word + n_before))

    @property
    def words_after(self) -> list[int]:
        """The ids of the soft prompt's part after the input."""
        first = self.first_word + len(self.words_before)
        n_after = 0 if self.soft is None else len(self.soft.suffix)
        return list(range(first, first + n_after))

    def _spoken(
        self, tokens: Int[Tensor, "batch pos"], editors: Mapping[str, Editor]
    ) -> tuple[Int[Tensor, "batch pos"], Mapping[str, Editor]]:
        """Tokens of the vocabulary alone, and what puts the soft prompt's vectors in their place.

        The vectors take the place of token embeddings: a learned position embedding is added to
        them as to any token, and rotary positions turn their keys and queries.
        """
        places = (tokens >= self.first_word).to(self.device)
        if self.soft is None or not bool(places.any()):
            return tokens, editors
        vectors = torch.cat([self.soft.prefix, self.soft.suffix]).to(self.device)
        rows = (tokens.to(self.device) - self.first_word).clamp(min=0)
        own = editors.get(EMBEDDING)

        def put(embedded: Tensor) -> Tensor:
            spoken = torch.where(places[..., None], vectors[rows].to(embedded), embedded)
            return spoken if own is None else own(spoken)

        plain = tokens.masked_fill(tokens >= self.first_word, self.pad_id)
        return plain, {**editors, EMBEDDING: put}
