"""What is found of several neurons, each by its name."""

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar, runtime_checkable

from lens_skills.errors import LensSkillsError


@runtime_checkable
class Named(Protocol):
    """Of one neuron."""

    @property
    def name(self) -> str:
        """Such as ``"L17N635"``."""
        ...


Found = TypeVar("Found", bound=Named)


class NeuronsByName(Mapping[str, Found]):
    """A mapping from names to what is in ``neurons``, in their order."""

    neurons: tuple[Found, ...]
    _done = "read"

    def __getitem__(self, name: str) -> Found:
        for one in self.neurons:
            if one.name == name:
                return one
        raise LensSkillsError(
            f"{name!r} was not {self._done}. These were: "
            + ", ".join(one.name for one in self.neurons[:12])
            + (", …" if len(self) > 12 else "")
            + "."
        )

    def __contains__(self, name: object) -> bool:
        return any(one.name == name for one in self.neurons)

    def __iter__(self) -> Iterator[str]:
        return (one.name for one in self.neurons)

    def __len__(self) -> int:
        return len(self.neurons)
