"""Texts whose pieces are known by skill: read, checked, and turned into tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter

Pieces = list[tuple[str, str]]
"""A text as (skill, words) pairs; of one whose pieces are not known, a single one of skill ""."""


def read_texts(texts: Any, name: str, *, labelled: bool) -> list[Pieces]:
    """Every text as pieces; one of unknown pieces is a single one without a skill."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or len(texts) == 0:
        raise LensSkillsError(
            f"{name}={texts!r:.40} is no list of texts. Give some, such as "
            'ls.tasks.splice({"sums": sums, "verbs": verbs}, 20).'
        )
    found = []
    for place, text in enumerate(texts):
        plain = isinstance(text, str) and not labelled
        pieces = [("", text)] if plain else _as_pieces(text)
        if pieces is None or not all(words.strip() for _, words in pieces):
            kind = "(skill, words) pairs" if labelled else "a text or (skill, words) pairs"
            raise LensSkillsError(
                f"text {place} of {name} is {text!r:.60}: it must be {kind}, none of them empty, "
                'such as [("sums", "3 plus 4 is 7."), ("verbs", " The keys are here.")].'
            )
        found.append(pieces)
    return found


def _as_pieces(text: Any) -> Pieces | None:
    if isinstance(text, str) or not isinstance(text, Sequence) or len(text) == 0:
        return None
    pieces = []
    for piece in text:
        if isinstance(piece, str) or not isinstance(piece, Sequence) or len(piece) != 2:
            return None
        skill, words = piece
        if not (isinstance(skill, str) and isinstance(words, str) and skill):
            return None
        pieces.append((skill, words))
    return pieces


def check_skills(parts: Mapping[str, list[Pieces]], skills: Sequence[str]) -> None:
    """Nothing; raises where there are fewer than two skills, or one that fit does not have."""
    if len(skills) < 2:
        raise LensSkillsError(
            f"fit has one skill, {skills[0]!r}: a text can be cut between two or more. Give texts "
            "of another skill too."
        )
    for name in ("tune", "texts"):
        asked = {skill for text in parts[name] for skill, _ in text if skill}
        if unknown := sorted(asked - set(skills)):
            raise LensSkillsError(
                f"{name} has the skill {unknown[0]!r}, which fit does not have: it has "
                f"{', '.join(skills)}. Add labelled texts of it to fit, or leave those texts out."
            )


def refuse_shared(parts: Mapping[str, list[Pieces]]) -> None:
    """Nothing; raises where what is measured was fitted on, or the price chosen on."""
    words = {
        name: {piece.strip() for text in some for _, piece in text} for name, some in parts.items()
    }
    for one, other in (("texts", "fit"), ("texts", "tune"), ("tune", "fit")):
        if shared := sorted(words[one] & words[other]):
            raise LensSkillsError(
                f"{one} and {other} share {len(shared)} pieces, such as {shared[0]!r:.60}: what is "
                "cut must not have been fitted on. Split the tasks first (Task.split), then "
                "splice each part."
            )


@dataclass(frozen=True)
class LabelledTokens:
    """A text in tokens; ``piece`` of each, and the pieces' skills ("" where not known)."""

    example: Example
    tokens: tuple[str, ...]
    piece: tuple[int, ...]
    skills: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether the pieces are known."""
        return self.skills[0] != ""

    @property
    def boundaries(self) -> list[int]:
        """The tokens that begin a piece, without the first."""
        return [at for at, (one, two) in enumerate(pairwise(self.piece), 1) if one != two]

    @property
    def truth(self) -> list[str]:
        """The skill of each token."""
        return [self.skills[piece] for piece in self.piece]


def label_tokens(
    adapter: ModelAdapter, texts: Sequence[Pieces], shortest: int
) -> list[LabelledTokens]:
    """The texts in tokens, each of which is of one piece."""
    examples = [
        Example(id=f"text {place}", prompt="".join(words for _, words in pieces))
        for place, pieces in enumerate(texts)
    ]
    if not examples:
        return []
    found = []
    for pieces, encoded in zip(
        texts, encode_examples(adapter, examples, answers=False), strict=True
    ):
        whole, called = encoded.prompt, f"{encoded.id}, {encoded.prompt!r:.60},"
        own = encoded.prompt_tokens[1 if encoded.has_bos else 0 :].tolist()
        if len(own) < shortest:
            raise LensSkillsError(
                f"{called} has {len(own)} tokens and a segment {shortest} or more: leave it out, "
                "or lower shortest=."
            )
        ends = [len(adapter.tokenizer.decode(own[: end + 1])) for end in range(len(own))]
        start = adapter.tokenizer.decode(own).find(whole.strip())
        before = start - (len(whole) - len(whole.lstrip()))
        stops = [before + int(stop) for stop in np.cumsum([len(words) for _, words in pieces])]
        # A token that spans two pieces is of the one it ends in.
        piece = [min(sum(stop < end for stop in stops), len(pieces) - 1) for end in ends]
        if start < 0:
            raise LensSkillsError(
                f"{called} does not come back from its tokens as it was written: leave it out."
            )
        if set(piece) != set(range(len(pieces))):
            raise LensSkillsError(f"{called} has a piece without a token of its own: leave it out.")
        found.append(
            LabelledTokens(
                example=encoded.example,
                tokens=tuple(adapter.decode(token) for token in own),
                piece=tuple(piece),
                skills=tuple(skill for skill, _ in pieces),
            )
        )
    return found
