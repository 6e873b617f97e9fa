"""Parity: an opened model computes what the plain Hugging Face model computes.

Through the adapter that every verb uses: logits and MLP activations, alone and in batches padded on
either side, past every window and position scale that the configuration names.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import ModelAdapter
from lens_skills.models.backends import as_adapter
from lens_skills.models.gguf_cache import root
from lens_skills.models.huggingface import reason_of
from lens_skills.models.stored_weights import checksum

OUTPUT_PROJECTION = re.compile(
    r"\.(\d+)\.(?:(?:mlp|ffn|feed_forward)\.)?"
    r"(?:down_proj|c_proj|dense_4h_to_h|fc2|fc_out|w2)$"
)
"""Names of the module that reads the neurons, over the architectures of transformers."""

FORMAT = 3
LENGTHS = (13, 9, 5)
REACH = 320
"""Windows up to here are passed by a prompt; larger ones are narrowed to `NARROW` in both."""
NARROW = 4
COMPARED = 24
"""Logits are compared at so many last positions of each row."""
BARS = {
    torch.float64: (1e-3, 1e-3),
    torch.float32: (1e-3, 1e-3),
    torch.float16: (0.05, 0.02),
    torch.bfloat16: (0.15, 0.05),
}
"""Per dtype, of log-probabilities (in units of their spread) and of activations (of the largest).

In float32 the largest difference counts, in half precision the mean: single values scatter there.
"""


@dataclass(frozen=True)
class Reference:
    """What the plain Hugging Face forward gives, one prompt at a time, without padding.

    Attributes:
        rows: The tokens ``[pos]`` of each prompt, of different lengths; each begins the longest.
        log_probabilities: Of the next token ``[pos d_vocab]``, at the last positions of each row.
        neurons: Per layer and row, the input of the layer's output projection, where recognised.
        narrowed: Whether windows and position scales were narrowed for it.
    """

    rows: tuple[Tensor, ...]
    log_probabilities: tuple[Tensor, ...]
    neurons: dict[int, list[Tensor]]
    narrowed: bool


@dataclass(frozen=True)
class Parity:
    """How far an opened model is from the plain forward.

    Attributes:
        log_probability: Largest difference of log-probabilities (nats) in float32, the mean one in
            half precision and of quantised weights.
        spread: Standard deviation of the log-probabilities over the vocabulary (nats): where it is
            small, so must the difference be.
        activation: The same difference for MLP activations, in units of the layer's largest; None
            where the architecture's neurons were not recognised.
        allowed: The bars for both: nats, and share of the largest activation.
        where: The layout of the worst difference: ``alone``, ``padded left``, ``padded right``, and
            whether windows were narrowed.
        not_reached: Position scales that no prompt of the comparison passed.
        crashed: Why no comparison could be made, if none could.
    """

    log_probability: float
    spread: float
    activation: float | None
    allowed: tuple[float, float]
    where: str = ""
    not_reached: tuple[str, ...] = ()
    crashed: str = ""

    @property
    def passed(self) -> bool:
        """Whether both differences are numbers below what is allowed."""
        neurons = self.activation is None or self.activation <= self.allowed[1]
        return not self.crashed and self.log_probability <= self.allowed[0] and neurons

    def __str__(self) -> str:
        """The numbers in one clause."""
        if self.crashed:
            return self.crashed
        if self.log_probability != self.log_probability:
            return f"its logits are not numbers ({self.where})"
        neurons = "not compared"
        if self.activation is not None:
            neurons = (
                f"differ by {self.activation:.2g} of their largest (allowed {self.allowed[1]:g})"
            )
        return (
            f"log-probabilities differ by {self.log_probability:.2g} nats (allowed "
            f"{self.allowed[0]:.2g}, spread {self.spread:.2g}; worst {self.where}), MLP "
            f"activations {neurons}"
        )


def references(hf_model: Any, name: str) -> tuple[Reference, ...]:
    """What ``hf_model`` computes on fixed prompts; taken before it is converted.

    Raises:
        LensSkillsError: It gives infinities itself: an overflow of float16, or broken weights.
    """
    scales = _scales(hf_model)
    n_weights = sum(parameter.numel() for parameter in hf_model.parameters())
    limit = getattr(_text_config(hf_model), "max_position_embeddings", None) or 10**6
    near = [
        scale for scale in scales.values()
        if scale <= REACH and scale * n_weights <= 1e11 and scale + 11 <= limit
    ]  # fmt: skip
    lengths = tuple(max(1, min(length, limit - 2)) for length in LENGTHS)
    longer = (max(near) + 9,) if near and max(near) + 9 > max(lengths) else ()
    # What a causal model computes of a beginning it computes of the whole, in one pass for all; not
    # where the length of the prompt changes the positions, nor where its largest number scales all.
    together = not quantised(hf_model) and not {"longrope", "dynamic"} & set(scales)
    exact = hf_model.dtype in (torch.float32, torch.float64)
    found = _reference(hf_model, name, (*lengths, *longer), False, together)
    moved = _moved(hf_model, found)
    least = 0.1 * BARS.get(hf_model.dtype, BARS[torch.bfloat16])[0]
    if together and not float(moved.max() if exact else moved.mean()) <= least:
        together = False
        found = _reference(hf_model, name, (*lengths, *longer), False, together)
        moved = _moved(hf_model, found)
    # Packed weights scale what they multiply by the largest of the whole prompt.
    if float(moved.max()) > (0.5 if quantised(hf_model) else 0.02):
        raise LensSkillsError(
            f"{name} ({type(hf_model).__name__}) predicts a token from those after it, as encoders "
            "do (BERT and its kin). Decoder-only language models can be opened."
        )
    if len(near) == len(scales):
        return (found,)
    with narrowed(hf_model):
        return found, _reference(hf_model, name, lengths, True, together)


def _moved(hf_model: Any, found: Reference) -> Tensor:
    """How far the predictions of the shortest row move where its last token is another.

    In units of the spread over the vocabulary. Where the row was read as the beginning of a longer
    one, also with the tokens that followed.
    """
    row, before = min(
        zip(found.rows, found.log_probabilities, strict=True), key=lambda r: len(r[0])
    )
    other = row.clone()
    other[-1] = found.rows[0][0]
    with torch.no_grad():
        after = hf_model.eval()(other[None], use_cache=False).logits[0, -COMPARED:]
    after = after.double().log_softmax(-1).cpu()
    moved = (after[:-1] - before[:-1]).abs() / before.std(-1).mean()
    return moved if moved.numel() else torch.zeros(1)


def _reference(
    hf_model: Any, name: str, lengths: Sequence[int], narrow: bool, together: bool
) -> Reference:
    table = hf_model.get_input_embeddings().weight
    # Spread over the vocabulary: a tokenizer is not needed, and no row looks like another.
    tokens = (torch.arange(max(lengths)) * 7919 + 17) % _vocabulary(hf_model)
    rows = [tokens[:length].to(table.device) for length in lengths]
    neurons: dict[int, list[Tensor]] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            neurons.setdefault(layer, []).append(inputs[0].detach().flatten(0, -2).cpu())

        return hook

    handles = [
        module.register_forward_pre_hook(keep(int(found.group(1))))
        for path, module in hf_model.named_modules()
        if (found := OUTPUT_PROJECTION.search(path)) and "expert" not in path
    ]
    training = hf_model.training
    kept = []
    try:
        with torch.no_grad():
            for row in [max(rows, key=len)] if together else rows:
                logits = hf_model.eval()(row[None], use_cache=False).logits[0]
                for end in map(len, rows) if together else [len(row)]:
                    last = logits[max(end - COMPARED, 0) : end]
                    kept.append(last.double().log_softmax(-1).cpu())
    except Exception as error:  # an architecture whose own forward needs more than tokens
        raise LensSkillsError(
            f"the plain Hugging Face forward of {name} ({type(hf_model).__name__}) fails: "
            f"{reason_of(error).rstrip('.')}. Mend that first: nothing can be compared with it."
        ) from error
    finally:
        hf_model.train(training)
        for handle in handles:
            handle.remove()
    if together:
        neurons = {
            layer: [found[0][: len(row)] for row in rows] for layer, found in neurons.items()
        }
    if not all(bool(torch.isfinite(row).all()) for row in kept):
        dtype = table.dtype
        way = (
            "float16 ends at 65504: this is an overflow. Open it with dtype=torch.bfloat16 or "
            "torch.float32."
            if dtype == torch.float16
            else "Its weights are damaged, or were trained in another precision."
        )
        raise LensSkillsError(f"{name} itself gives logits that are not numbers in {dtype}. {way}")
    return Reference(tuple(rows), tuple(kept), neurons, narrow)


def compare(model: Any, expected: Sequence[Reference], hf_model: Any = None) -> Parity:
    """The distance of ``model`` (HookedTransformer or bridge) from what is expected of it.

    Args:
        model: Any model `as_adapter` takes.
        expected: From the Hugging Face model, before it was converted.
        hf_model: That model, whose position scales and rotations are looked at.
    """
    adapter = as_adapter(model)
    exact = adapter.dtype in (torch.float32, torch.float64) and not quantised(hf_model)
    bars = BARS.get(adapter.dtype, BARS[torch.bfloat16]) if exact else BARS[torch.bfloat16]
    if adapter.dtype == torch.float16 and not quantised(hf_model):
        bars = BARS[torch.float16]
    worst, activation, where = -1.0, -1.0, ""
    spread = float(torch.cat([row.std(-1) for e in expected for row in e.log_probabilities]).mean())
    for reference in expected:
        holding = narrowed(model) if reference.narrowed else nullcontext()
        with holding:
            for layout, numbers, tokens, mask in _layouts(reference.rows):
                gaps = _gaps(adapter, reference, numbers, tokens, mask, exact)
                if not gaps[0] <= worst or not gaps[1] <= activation:
                    where = f"{layout}, windows narrowed" if reference.narrowed else layout
                # max() would drop a NaN that does not come first.
                worst = float(torch.tensor([worst, gaps[0]]).max())
                activation = float(torch.tensor([activation, gaps[1]]).max())
    parity = Parity(
        log_probability=worst,
        spread=spread,
        activation=None if activation == -1.0 else activation,
        allowed=(bars[0] * min(max(spread, 0.01), 4.0), bars[1]),
        where=where,
    )
    return parity if hf_model is None else _rotations(parity, adapter, hf_model)


def _layouts(
    rows: Sequence[Tensor],
) -> Iterator[tuple[str, list[int], Int[Tensor, "batch pos"], Tensor]]:
    """The longest row alone, and the others in one batch, padded on the left and on the right."""
    # A long row has company of its own kind: some position scales look at the longest of a batch.
    short = [number for number, row in enumerate(rows) if len(row) <= max(LENGTHS)]
    for group in (short, [number for number in range(len(rows)) if number not in short]):
        if not group:
            continue
        longest = max(group, key=lambda number: len(rows[number]))
        row = rows[longest][None]
        yield "alone", [longest], row, torch.ones_like(row, dtype=torch.bool)
        batch = [number for number in group if number != longest] or group
        width = max(len(rows[number]) for number in batch) + 2
        for layout in ("padded left", "padded right"):
            tokens = rows[0].new_full((len(batch), width), int(rows[0][0]))
            mask = torch.zeros_like(tokens, dtype=torch.bool)
            for place, number in enumerate(batch):
                n = len(rows[number])
                at = slice(width - n, width) if layout == "padded left" else slice(0, n)
                tokens[place, at], mask[place, at] = rows[number], True
            yield layout, batch, tokens, mask


def _gaps(
    adapter: ModelAdapter,
    expected: Reference,
    numbers: Sequence[int],
    tokens: Tensor,
    mask: Tensor,
    exact: bool,
) -> tuple[float, float]:
    """Differences of log-probabilities and of activations in one batch; -1 where none were read."""
    neurons: dict[int, Tensor] = {}
    names = set(adapter.hook_names())

    def keep(layer: int) -> Callable[[Tensor], None]:
        return lambda activation: neurons.__setitem__(layer, activation.detach().cpu())

    readers = {
        name: keep(layer)
        for layer in expected.neurons
        if (name := f"blocks.{layer}.mlp.hook_post") in names
    }
    n_last = [len(expected.log_probabilities[number]) for number in numbers]
    ends = [int(row.nonzero().max()) for row in mask]
    at = torch.tensor(
        [[max(end - back, 0) for back in reversed(range(max(n_last)))] for end in ends]
    )
    logits = adapter.forward(tokens, mask, readers=readers, logits_at=at.to(tokens.device))
    assert logits is not None
    found = logits.double().log_softmax(-1).cpu()

    def distance(one: Tensor, other: Tensor) -> float:
        gap = (one.double() - other.double()).abs().masked_fill(one.double() == other.double(), 0)
        return float(gap.max() if exact else gap.mean())

    gaps = [
        distance(found[place, -n:, : row.shape[-1]], row[:, : found.shape[-1]])
        for place, (number, n) in enumerate(zip(numbers, n_last, strict=True))
        for row in [expected.log_probabilities[number]]
    ]
    shares = [-1.0]
    for layer, activation in neurons.items():
        scale = max(float(row.abs().max()) for row in expected.neurons[layer])
        rows = activation.view(*mask.shape, -1)
        for place, number in enumerate(numbers):
            wanted = expected.neurons[layer][number]
            real = rows[place][mask[place].cpu()]
            same = real.shape == wanted.shape
            shares.append(distance(real, wanted) / max(scale, 1e-12) if same else float("inf"))
    return float(torch.tensor(gaps).max()), float(torch.tensor(shares).max())


def measured(model: Any, expected: Sequence[Reference], hf_model: Any = None) -> Parity:
    """As `compare`; a model that fails in a forward pass has a `Parity` that says so."""
    try:
        return compare(model, expected, hf_model)
    except Exception as error:  # a conversion that does not fit its own modules
        nan = float("nan")
        said = f"its forward pass fails ({reason_of(error)})"
        return Parity(nan, nan, None, (0.0, 0.0), crashed=said)


# Windows and position scales.


def _text_config(hf_model: Any) -> Any:
    return hf_model.config.get_text_config() if hasattr(hf_model, "config") else None


def _vocabulary(hf_model: Any) -> int:
    return int(hf_model.get_input_embeddings().weight.shape[0])


def _rope(config: Any) -> list[dict[str, Any]]:
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    found = found if isinstance(found, dict) else {}
    kinds = [part for part in found.values() if isinstance(part, dict)]
    return kinds or [found]


def _scales(hf_model: Any) -> dict[str, int]:
    """Lengths at which the model begins to compute otherwise, by their name in its config."""
    config = _text_config(hf_model)
    names = ("sliding_window", "attention_chunk_size", "window_size")
    found = {name: getattr(config, name, None) for name in names}
    if getattr(config, "use_sliding_window", True) is False:
        found["sliding_window"] = None
    for part in _rope(config):
        if part.get("rope_type") in ("longrope", "dynamic"):
            most = part.get("original_max_position_embeddings") or config.max_position_embeddings
            found[part["rope_type"]] = most
    return {name: int(n) for name, n in found.items() if isinstance(n, int) and n > 0}


@contextmanager
def narrowed(model: Any) -> Iterator[None]:
    """Windows and scales of `NARROW` tokens inside, so that short prompts pass them."""
    hf_model = getattr(model, "original_model", model)
    configs = {
        id(config): config
        for part in hf_model.modules()
        for name in ("config", "cfg")
        if (config := getattr(part, name, None)) is not None
    }
    built_in = ("window_size", "gpt_neo")  # its modules hold the window, and it is short
    restore: list[Callable[[], None]] = []
    try:
        for config in configs.values():
            for name in ("sliding_window", "attention_chunk_size", "window_size"):
                value = getattr(config, name, None)
                if type(value) is int and (name, getattr(config, "model_type", "")) != built_in:
                    restore.append(partial(setattr, config, name, value))
                    setattr(config, name, NARROW)
            for part in _rope(config):
                key = "original_max_position_embeddings"
                if part.get("rope_type") == "longrope" and key in part:
                    restore.append(partial(part.__setitem__, key, part[key]))
                    part[key] = NARROW
        yield
    finally:
        for undo in reversed(restore):
            undo()


def _rotations(parity: Parity, adapter: ModelAdapter, hf_model: Any) -> Parity:
    """The parity, failed where a HookedTransformer turns far positions otherwise."""
    scales = _scales(hf_model).items()
    far = tuple(f"{name} {n}" for name, n in scales if name == "dynamic" and n > REACH)
    if adapter.implementation == "bridge":
        return replace(parity, not_reached=far)  # the bridge turns with the original's own module
    attention = adapter.model.blocks[0].attn
    own = next(
        (part for path, part in hf_model.named_modules() if path.endswith("rotary_emb")), None
    )
    if own is None or not hasattr(attention, "rotary_cos"):
        return parity
    last = len(attention.rotary_cos) - 1
    at = torch.tensor(sorted({min(p, last) for p in (1, 7, 100, 1000, 3000, last)}))
    try:
        with torch.no_grad():
            there = own.inv_freq.device
            found = own(torch.zeros(1, 1, device=there), at[None].to(there))
        wanted = [part[0].float().cpu() for part in found]
        mine = [getattr(attention, name).cpu()[at].float() for name in ("rotary_cos", "rotary_sin")]
        # Without a common factor, and in any order of the features.
        one, two = ((cos / cos.hypot(sin)).sort(-1).values for cos, sin in (wanted, mine))
        gap = float((one - two).abs().max())
    except (TypeError, ValueError, RuntimeError, AttributeError):  # of another make
        return replace(parity, not_reached=(*far, f"rotations up to position {last}"))
    if gap <= 0.02:
        return parity
    said = f"positions up to {last} are turned otherwise (cosines differ by {gap:.2g})"
    return replace(parity, crashed=said)


def quantised(hf_model: Any) -> bool:
    """Whether a Hugging Face model holds packed weights."""
    return bool(getattr(hf_model, "is_quantized", False))


# Stored, so that it costs once.


def key_of(hf_model: Any, implementation: str) -> str:
    """What a stored parity stands for: weights, configuration, versions, implementation, dtype."""
    tensors = [*hf_model.named_parameters(), *hf_model.named_buffers()]
    sums = [(name, str(tensor.dtype), *checksum(tensor)) for name, tensor in tensors]
    config = {k: v for k, v in hf_model.config.to_dict().items() if not k.startswith("_")}
    parts = [FORMAT, implementation, str(hf_model.device.type), versions(), config, sums]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of the libraries that compute."""
    return {name: version(name) for name in ("transformer-lens", "transformers", "torch")}


def stored(key: str) -> Parity | None:
    """The parity measured earlier, or None."""
    try:
        found = json.loads((root() / "parity" / f"{key[:32]}.json").read_text())
        if found.pop("key") != key:
            return None
        lists = {name: tuple(found[name]) for name in ("allowed", "not_reached")}
        return Parity(**{**found, **lists})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store(key: str, parity: Parity) -> None:
    """Keep a parity; a cache that cannot be written costs the comparison again, nothing else."""
    with suppress(OSError):
        folder = root() / "parity"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{key[:32]}-{os.getpid()}"
        temporary.write_text(json.dumps(asdict(parity) | {"key": key}, indent=2))
        temporary.replace(folder / f"{key[:32]}.json")
