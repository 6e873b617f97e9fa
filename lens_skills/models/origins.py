"""How a model was opened, so that another process can open the same one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(frozen=True)
class Origin:
    """What `load_model` was given.

    Attributes:
        x: A name, a folder or a file; None for the bundled default.
        implementation, dtype, tokenizer: As in `load_model`.
        state: Of the weights when they were opened: which tensors, and how often each was changed.
    """

    x: str | None
    implementation: str
    dtype: str
    tokenizer: str | None
    state: tuple[tuple[int, int], ...]

    @property
    def named(self) -> str:
        """The model as a call opens it."""
        return f"load_model({'' if self.x is None else repr(self.x)})"

    @property
    def options(self) -> Mapping[str, Any]:
        """The arguments of `load_model`, without the device."""
        return {
            "x": self.x,
            "implementation": self.implementation,
            "dtype": self.dtype,
            "tokenizer": self.tokenizer,
        }


_ORIGINS: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()


def remember(model: Any, x: str | None, *, implementation: str, dtype: Any, tokenizer: Any) -> None:
    """Keeps how a model was opened from a name or a path."""
    text = str(dtype).removeprefix("torch.")
    _ORIGINS[model] = Origin(x, implementation, text, tokenizer, _state(model))


def origin_of(model: Any) -> Origin | None:
    """How a model was opened; None where it came from memory or its weights were changed since."""
    found = _ORIGINS.get(model)
    return found if found is not None and found.state == _state(model) else None


def _state(model: Any) -> tuple[tuple[int, int], ...]:
    # The version of a tensor counts every change in place.
    return tuple((id(weight), weight._version) for weight in model.parameters())
