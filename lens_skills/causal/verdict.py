"""`Verdict`: what interventions say of each neuron on trial and of them together."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills.causal.card import card_lines
from lens_skills.causal.effects import Effects
from lens_skills.causal.ruling import CAUSAL, WORDS, Ruling
from lens_skills.errors import LensSkillsError
from lens_skills.folder import read_folder, write_folder

Rows = tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Verdict:
    """Signed effects with intervals, their place among controls, and a word for each neuron.

    Printing it shows one card.

    Attributes:
        rulings: One per neuron, in the order given, then one named ``"set"`` where there are
            several.
        effects: The per-example effects behind them, in the same order.
        peers: Names and mean effects of the single units each neuron is compared with.
        peer_effect: See ``peers``; removing the unit changes the metric by so much.
        control_effect: Mean effect of every matched control set.
        important_effect: Of every control set drawn among important neurons (may be empty).
        delta: The smallest effect that matters, in the metric's unit, and where it is from.
        tables: Rows of further results by name; see `table`.
        notes: What a reader must know before quoting a number.
        removes: Whether the edit took the neurons' work away; see `ruling.rule`.
        exploratory: True where a rule against reuse was waived.
        provenance: Model, task, split, seed and versions behind the numbers.
    """

    rulings: tuple[Ruling, ...]
    effects: Effects
    peers: tuple[str, ...]
    peer_effect: Float[Tensor, " peer"]
    control_effect: Float[Tensor, " control"]
    important_effect: Float[Tensor, " important"]
    delta: float
    delta_from: str
    tables: Mapping[str, Rows]
    notes: tuple[str, ...] = ()
    removes: bool = True
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Ruling:
        for ruling in self.rulings:
            if ruling.name == name:
                return ruling
        raise LensSkillsError(
            f"no ruling on {name!r}. There is one on: "
            + ", ".join(ruling.name for ruling in self.rulings)
            + "."
        )

    def __len__(self) -> int:
        return len(self.singles)

    @property
    def singles(self) -> tuple[Ruling, ...]:
        """The rulings on single neurons."""
        return tuple(ruling for ruling in self.rulings if ruling.name != "set")

    def named(self, *words: str) -> list[str]:
        """The neurons with one of these words, e.g. ``verdict.named("supports")``."""
        return [ruling.name for ruling in self.singles if ruling.word in words]

    @property
    def causal(self) -> list[str]:
        """The neurons that support, oppose or do both."""
        return self.named(*CAUSAL)

    @property
    def counts(self) -> dict[str, int]:
        """How many neurons got each word, in the order of `WORDS`."""
        return {word: len(self.named(word)) for word in WORDS}

    def frame(self) -> pd.DataFrame:
        """One row per neuron and one for the set, with the columns of `Ruling`."""
        frame = pd.DataFrame([vars(ruling) for ruling in self.rulings])
        return frame.assign(exploratory=True) if self.exploratory else frame

    def table(self, name: str) -> pd.DataFrame:
        """A further table.

        ``"classes"``: effect of every neuron within every class. ``"ablations"``: over the choice
        of ablation. ``"unrelated"``: on unrelated examples. ``"controls"``: the set among its
        control sets. ``"match"``: how alike the controls are. ``"set"``: the set against the sum
        of its neurons. ``"pairs"``: noising and denoising. Only those measured are there.
        """
        if name not in self.tables:
            raise LensSkillsError(
                f"no table {name!r} in this verdict. It has: {', '.join(self.tables) or 'none'}."
            )
        return pd.DataFrame(list(self.tables[name]))

    def cloud(self) -> pd.DataFrame:
        """Every single unit measured, for a picture: name, effect, on_trial, word.

        ``word`` is empty for the units that served as comparison.
        """
        singles = self.singles
        return pd.DataFrame(
            {
                "name": [*(ruling.name for ruling in singles), *self.peers],
                "effect": [*(ruling.effect for ruling in singles), *self.peer_effect.tolist()],
                "on_trial": [True] * len(singles) + [False] * len(self.peers),
                "word": [*(ruling.word for ruling in singles), *[""] * len(self.peers)],
            }
        )

    def __repr__(self) -> str:
        return "\n".join(card_lines(self))

    def save(self, folder: str | Path) -> Path:
        """Writes ``verdict.safetensors`` and ``verdict.json``; the folder appears whole or not."""
        return write_folder(Path(folder), "verdict", *pack(self))

    @classmethod
    def load(cls, folder: str | Path) -> "Verdict":
        """The verdict that `save` wrote."""
        return unpack(*read_folder(Path(folder), "verdict"))


def pack(verdict: Verdict) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A verdict as tensors and plain JSON values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"effects": {}}
    for item in fields(verdict):
        value = getattr(verdict, item.name)
        if isinstance(value, Tensor):
            tensors[item.name] = value.contiguous()
        elif item.name == "rulings":
            plain["rulings"] = [vars(ruling) for ruling in value]
        elif item.name != "effects":
            plain[item.name] = value
    for item in fields(verdict.effects):
        value = getattr(verdict.effects, item.name)
        if isinstance(value, Tensor):
            tensors[f"effects/{item.name}"] = value.contiguous()
        else:
            plain["effects"][item.name] = value
    return tensors, plain


def unpack(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Verdict:
    """The verdict that `pack` took apart."""
    values = dict(plain)
    effects: dict[str, Any] = {"direct": None} | values.pop("effects")
    for name in ("names", "example_ids", "groups"):
        effects[name] = tuple(effects[name])
    for name, tensor in tensors.items():
        part = name.removeprefix("effects/")
        (values if part == name else effects)[part] = tensor
    values["rulings"] = tuple(Ruling(**ruling) for ruling in values["rulings"])
    values["tables"] = {name: tuple(rows) for name, rows in values["tables"].items()}
    for name in ("peers", "notes"):
        values[name] = tuple(values[name])
    return Verdict(effects=Effects(**effects), **values)
