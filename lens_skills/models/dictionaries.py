"""`Dictionary`: an encoder and a decoder of features, such as an SAE's or a transcoder's.

docs/howto/features.md states the format it is saved in.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.results import work_folder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

Architecture = Literal["standard", "jumprelu", "topk", "gated"]
Normalisation = Literal["none", "constant_norm_rescale", "layer_norm"]

NEEDS: dict[str, tuple[str, ...]] = {
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
"""What an encoder holds beside W_enc, W_dec and b_dec."""

TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""What SAELens calls transcoders, and their encoders. A skip reads what no feature does: it is a
part of the error, which is kept."""
_EPSILON = 1e-5  # of a layer norm, beside the standard deviation, as in SAELens


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """Features of a hook point: what turns them on (encoder) and what each writes (decoder).

    Activations of a feature are f = act((x - b_dec) W_enc + b_enc), x being the hook point's
    activation at one token; a change Δf of them adds Δf · W_dec to the hook point that is written,
    which keeps the reconstruction's error, and its bias, as they are.

    Args:
        W_enc, W_dec: The encoder ``d_in d_sae`` and the decoder ``d_sae d_out``.
        hook_name: What is read, in full: ``"blocks.12.hook_resid_post"``. Heads of
            ``attn.hook_z`` stand side by side.
        hook_name_out: What is written, of the same block; of an SAE what is read (left out), of a
            transcoder such as ``"blocks.12.hook_mlp_out"``.
        b_enc, b_dec: Biases; zeros where left out.
        architecture: act; ``"standard"``: ReLU. ``"jumprelu"``: x where x > ``threshold``, and not
            below 0. ``"topk"``: the ``k`` largest of a token, ReLU. ``"gated"``: the ReLU of
            (x - b_dec) (W_enc exp(r_mag)) + b_mag where (x - b_dec) W_enc + b_gate > 0.
        threshold, k, b_gate, r_mag, b_mag: As the architecture needs them.
        apply_b_dec_to_input: Whether b_dec is taken off before encoding; not of a transcoder.
        normalize_activations: ``"constant_norm_rescale"``: x is scaled to a length of √d_in.
            ``"layer_norm"``: its mean is removed and it is divided by its standard deviation.
            What features write is scaled back, token by token (not of a transcoder).
        name: The site that the features are: ``at="features"``, units ``"L12F345"``. Two
            dictionaries of one block need two names.
        model: The model it was trained on, as its maker calls it; "" for unknown.

    Raises:
        LensSkillsError: Shapes that do not fit together, numbers that are not finite, a part that
            the architecture lacks or does not have, a hook point without its block, or written in
            another block than it is read in.

    Source: SAEs, Bricken et al. 2023 (Transformer Circuits Thread) and Cunningham et al. 2023
    (arXiv 2309.08600); gated: arXiv 2404.16014; JumpReLU: arXiv 2407.14435; TopK: arXiv 2406.04093;
    transcoders: arXiv 2406.11944; the kept error: Marks et al. 2024 (arXiv 2403.19647).

    Does not show: that its features are the model's own. What it does not reconstruct is left in
    the error, where no feature reaches it.

    >>> one = Dictionary(torch.eye(2), torch.eye(2), "blocks.0.hook_resid_post")
    >>> one
    Dictionary(2 features, standard, reads and writes blocks.0.hook_resid_post)
    >>> one.encode(torch.tensor([[[3.0, -1.0]]])).tolist()
    [[[3.0, 0.0]]]
    """

    W_enc: Tensor
    W_dec: Tensor
    hook_name: str
    hook_name_out: str = ""
    b_enc: Tensor | None = None
    b_dec: Tensor | None = None
    architecture: str = "standard"
    threshold: Tensor | None = None
    k: int | None = None
    b_gate: Tensor | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    apply_b_dec_to_input: bool | None = None
    normalize_activations: str = "none"
    name: str = "features"
    model: str = ""
    _held: dict[Any, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        _check_words(self)
        out = self.hook_name_out or self.hook_name
        object.__setattr__(self, "hook_name_out", out)
        if self.apply_b_dec_to_input is None:
            object.__setattr__(self, "apply_b_dec_to_input", not self.transcodes)
        _check_places(self)
        _check_matrices(self)
        if self.b_enc is None and self.architecture != "gated":
            object.__setattr__(self, "b_enc", self.W_enc.new_zeros(self.d_sae))
        if self.b_dec is None:
            object.__setattr__(self, "b_dec", self.W_dec.new_zeros(self.d_out))
        _check_parts(self)

    def __repr__(self) -> str:
        reads = f"reads and writes {self.hook_name}"
        if self.transcodes:
            reads = f"reads {self.hook_name}, writes {self.hook_name_out}"
        kind = f"{self.architecture}, k = {self.k}" if self.k else self.architecture
        return f"Dictionary({self.d_sae:,} features, {kind}, {reads})"

    @property
    def d_in(self) -> int:
        """The width of what is read."""
        return int(self.W_enc.shape[0])

    @property
    def d_sae(self) -> int:
        """The number of features."""
        return int(self.W_enc.shape[1])

    @property
    def d_out(self) -> int:
        """The width of what is written."""
        return int(self.W_dec.shape[1])

    @property
    def transcodes(self) -> bool:
        """Whether another hook point is written than is read."""
        return self.hook_name_out != self.hook_name

    @property
    def layer(self) -> int:
        """Its block."""
        return int(self.hook_name.split(".")[1])

    @property
    def hook_point(self) -> str:
        """The hook point that its features are, in full: ``"blocks.12.features"``."""
        return f"blocks.{self.layer}.{self.name}"

    @property
    def scaled(self) -> bool:
        """Whether what a feature writes is scaled by the token it is written at."""
        return self.normalize_activations != "none" and not self.transcodes

    def parts(self) -> dict[str, Tensor]:
        """Its matrices and vectors, by name."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: part for name, part in found.items() if isinstance(part, Tensor)}

    def settings(self) -> dict[str, Any]:
        """All that is neither a matrix nor a vector."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        return {k: v for k, v in found.items() if isinstance(v, str | int | bool)}

    @property
    def digest(self) -> str:
        """16 hex digits over numbers and settings: equal dictionaries, equal digits."""
        own = {name: value for name, value in self.settings().items() if name != "model"}
        whole = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
        for name, part in sorted(self.parts().items()):
            numbers = part.detach().cpu().contiguous().view(torch.uint8).numpy()
            whole.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
            whole.update(numbers.tobytes())
        return whole.hexdigest()[:16]

    def encode(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_sae"]:
        """The features' activations, in float32 or the more exact of x and the weights."""
        part = self._on(x)
        x, _ = self._normalised(x.to(part["W_enc"].dtype))
        with torch.autocast(x.device.type, enabled=False):
            if self.apply_b_dec_to_input:
                x = x - part["b_dec"]
            if self.architecture == "gated":
                shared = x @ part["W_enc"]
                size = x @ (part["W_enc"] * part["r_mag"].exp()) + part["b_mag"]
                return size.relu() * (shared + part["b_gate"] > 0)
            before = x @ part["W_enc"] + part["b_enc"]
            if self.architecture == "jumprelu":
                return before.relu() * (before > part["threshold"])
            if self.architecture == "topk":
                assert self.k is not None
                most = before.topk(self.k, dim=-1)
                return torch.zeros_like(before).scatter(-1, most.indices, most.values.relu())
            return before.relu()

    def written(
        self, change: Float[Tensor, "*row d_sae"], x: Float[Tensor, "*row d_in"]
    ) -> Float[Tensor, "*row d_out"]:
        """Δf · W_dec: what a change of activations adds where x is read."""
        part = self._on(x)
        weight, change = part["W_dec"], change.to(part["W_dec"].dtype)
        with torch.autocast(x.device.type, enabled=False):
            if not change.requires_grad:
                # Of thousands of features an edit moves few.
                moved = (change != 0).flatten(0, -2).any(0).nonzero()[:, 0]
                change, weight = change[..., moved], weight[moved]
            added = change @ weight
        if not self.scaled:
            return added
        _, scale = self._normalised(x.to(weight.dtype))
        assert scale is not None
        return added * scale

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x as the encoder takes it, and what is multiplied to undo that."""
        if self.normalize_activations == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return x / scale, scale
        if self.normalize_activations == "layer_norm":
            x = x - x.mean(dim=-1, keepdim=True)
            scale = x.std(dim=-1, keepdim=True)
            return x / (scale + _EPSILON), scale
        return x, None

    def _on(self, x: Tensor) -> dict[str, Tensor]:
        """Its parts on x's device, in float32 or more exact."""
        kind = torch.promote_types(torch.promote_types(x.dtype, self.W_enc.dtype), torch.float32)
        key = x.device, kind
        if key not in self._held:
            self._held[key] = {name: part.to(*key) for name, part in self.parts().items()}
        return self._held[key]

    def save(self, folder: str | Path) -> Path:
        """Writes ``cfg.json`` and ``sae_weights.safetensors`` into a new folder; its path.

        `load_dictionary` reads it, and so does SAELens where it has this architecture.

        Raises:
            LensSkillsError: The folder is there already, or cannot be written.
        """
        from safetensors.torch import save_file

        place = Path(folder)
        if place.exists():
            raise LensSkillsError(f"{place} exists already. Choose another folder.")
        kind = self.architecture
        if self.transcodes:
            names = {own: name for name, own in TRANSCODERS.items() if "skip" not in name}
            kind = names.get(kind, kind)
        about = {"hook_name": self.hook_name, "model_name": self.model, "sae_lens_version": "6.0.0"}
        if self.transcodes:
            about["hook_name_out"] = self.hook_name_out
        config = {
            "architecture": kind,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": str(self.W_enc.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": self.normalize_activations,
            "reshape_activations": "hook_z" if self.hook_name.endswith("hook_z") else "none",
            "name": self.name,
            "metadata": about,
        }
        config |= {"k": self.k} if self.k is not None else {}
        config |= {"d_out": self.d_out} if self.transcodes else {}
        with work_folder(place) as work:
            # Copies: an encoder may be its decoder's transpose, and a file holds each by itself.
            parts = {
                name: part.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, part in self.parts().items()
            }
            save_file(parts, work / WEIGHTS)
            (work / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        return place


def _check_words(made: Dictionary) -> None:
    choices = {"architecture": Architecture, "normalize_activations": Normalisation}
    for name, kind in choices.items():
        value = getattr(made, name)
        if value not in get_args(kind):
            raise LensSkillsError(
                f"{name} is {value!r}, and must be one of: {', '.join(get_args(kind))}."
            )
    for name in ("hook_name", "hook_name_out", "model"):
        if not isinstance(value := getattr(made, name), str):
            raise LensSkillsError(f"{name} must be a text, not {value!r:.60}.")
    if not isinstance(value := made.apply_b_dec_to_input, bool | None):
        raise LensSkillsError(f"apply_b_dec_to_input must be True or False, not {value!r:.60}.")
    if not isinstance(made.name, str) or not re.fullmatch(r"[a-z_][a-z0-9_]*", made.name):
        raise LensSkillsError(
            f"name={made.name!r}: features are called by small letters, digits and '_', such as "
            "'features' or 'mlp_features'."
        )


def _check_places(made: Dictionary) -> None:
    layers = []
    for what, point in (("hook_name", made.hook_name), ("hook_name_out", made.hook_name_out)):
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", point) if isinstance(point, str) else None
        if match is None:
            raise LensSkillsError(
                f"{what} is {point!r}, and must be a hook point of a block, in full: "
                "'blocks.12.hook_resid_post'."
            )
        layers.append(int(match[1]))
    if layers[0] != layers[1]:
        raise LensSkillsError(
            f"{made.hook_name} is read and {made.hook_name_out} written: one block is read and "
            "written here."
        )
    if made.transcodes and made.apply_b_dec_to_input:
        raise LensSkillsError(
            "apply_b_dec_to_input takes b_dec off what is read, but a transcoder's b_dec belongs "
            f"to what is written ({made.hook_name_out}). Say apply_b_dec_to_input=False."
        )


def _check_matrices(made: Dictionary) -> None:
    for name in ("W_enc", "W_dec"):
        part = getattr(made, name)
        if not isinstance(part, Tensor) or part.ndim != 2 or not part.is_floating_point():
            shape = (
                f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            )
            raise LensSkillsError(f"{name} must be a matrix of numbers, not {shape}.")
    if made.W_dec.shape[0] != made.d_sae or not made.d_sae:
        raise LensSkillsError(
            f"W_enc is {tuple(made.W_enc.shape)} and W_dec {tuple(made.W_dec.shape)}: the columns "
            "of W_enc and the rows of W_dec are the features."
        )
    if not made.transcodes and made.d_in != made.d_out:
        raise LensSkillsError(
            f"{made.hook_name} is read by width {made.d_in} and written by width {made.d_out}: of "
            "an SAE both are the same. Name what a transcoder writes: hook_name_out=…"
        )


def _check_parts(made: Dictionary) -> None:
    needs = {"b_enc", "threshold", "b_gate", "r_mag", "b_mag"}
    for name in (*sorted(needs), "b_dec"):
        part = getattr(made, name)
        if part is not None and not (isinstance(part, Tensor) and part.is_floating_point()):
            raise LensSkillsError(f"{name} must be a vector of numbers, not {part!r:.60}.")
    wanted = set(NEEDS[made.architecture])
    parts = made.parts()
    if missing := sorted(wanted - set(parts)):
        raise LensSkillsError(f"the architecture {made.architecture!r} needs {missing[0]}=…")
    if more := sorted((needs - wanted) & set(parts)):
        raise LensSkillsError(f"the architecture {made.architecture!r} has no {more[0]}.")
    for name, part in parts.items():
        width = made.d_out if name == "b_dec" else made.d_sae
        if name not in ("W_enc", "W_dec") and tuple(part.shape) != (width,):
            raise LensSkillsError(f"{name} has the shape {tuple(part.shape)}, not ({width},).")
        if not bool(part.isfinite().all()):
            raise LensSkillsError(f"{name} holds numbers that are not finite.")
    if (made.architecture == "topk") != (made.k is not None):
        raise LensSkillsError("k= belongs to the architecture 'topk', which needs it.")
    whole = isinstance(made.k, int) and not isinstance(made.k, bool)
    if made.k is not None and not (whole and 1 <= made.k <= made.d_sae):
        raise LensSkillsError(
            f"k is {made.k!r}, and must be a whole number from 1 to {made.d_sae}."
        )
