"""What mean-ablating a neuron does: in all, directly, and with the final norm frozen.

`mediate` sets each neuron, alone, to its mean; the three effects tell how much of what a neuron
does goes through the scale of the final norm.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills import settings
from lens_skills.activations import DEFAULT_SITE
from lens_skills.activations.components import neuron_names
from lens_skills.activations.continuations import pad_left
from lens_skills.activations.forward import NOTHING, Encoded, encode_examples
from lens_skills.activations.stream import batches
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter, keep_activation
from lens_skills.models.partial_forward import CannotResume, PartialForward, prefill
from lens_skills.models.weights import OutputWeights, frozen_norm

PATHS = ("total", "direct", "frozen")

Outcome = Callable[[Tensor, Sequence[Encoded]], Tensor]
"""From logits ``[row d_vocab]`` and the examples of the rows, one number per row."""

_ROWS = 128  # rows whose logits over the whole vocabulary are held at once
_AGREE = 1e-3  # nats: how near our own reading of the last residual must be to the model's


@dataclass(frozen=True, eq=False)
class Mediation:
    """Changes of several outcomes under mean ablation at the last prompt token: edited - clean.

    ``total``: all later layers run again. ``direct``: only what the neuron writes changes at the
    final norm, whose scale answers to it. ``frozen``: the same write read at the clean pass's own
    scale. In the last layer total and direct are one.

    Attributes:
        names: Of the neurons.
        change: For each path and outcome, one number per neuron and example.
        clean: Each outcome before any edit.
        groups: Of the examples.
    """

    names: tuple[str, ...]
    change: Mapping[str, Mapping[str, Float[Tensor, "neuron example"]]]
    clean: Mapping[str, Float[Tensor, " example"]]
    groups: tuple[str, ...]


def mediate(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    neurons: Int[Tensor, "neuron 2"],
    to: Float[Tensor, " neuron"],
    outcomes: Mapping[str, Outcome],
    *,
    answers: bool,
    n_paths: int | None = None,
) -> Mediation:
    """The effect of setting each neuron, alone, to its own value ``to`` at the last prompt token.

    Of the neurons beyond the first ``n_paths`` (None: all) only the total of the first outcome, a
    function of the logits that follow, is measured (everything else is NaN). ``answers``: prompts
    are read together with their answers.

    Raises:
        LensSkillsError: Upper layers cannot be run alone, what a neuron adds is not its row of
            W_out, or the logits are not a linear reading of the final norm.

    Source: Stolfo et al. 2024 (arXiv 2406.16254), section 3.2, whose code ablates in the last
    layer, where total and direct are one.
    """
    encoded = encode_examples(adapter, examples, answers=answers)
    n_all, n_paths = len(neurons), len(neurons) if n_paths is None else n_paths
    empty = torch.full((n_all, len(encoded)), torch.nan, dtype=torch.float64)
    change = {path: {name: empty.clone() for name in outcomes} for path in PATHS}
    clean = {name: torch.zeros(len(encoded), dtype=torch.float64) for name in outcomes}
    writes = OutputWeights(adapter)
    size = settings.batch_size(16)
    for place, batch in enumerate(batches(encoded, NOTHING, "mediation", batch_size=size)):
        index = torch.tensor([item.index for item in batch])
        # One batch tells whether upper blocks may run alone.
        run = _MediationPass(adapter, batch, neurons, writes, check=place == 0)
        for name, of in outcomes.items():
            clean[name][index] = of(run.logits, batch).double().cpu()
        for part, paths in _parts(n_all, n_paths, max(1, _ROWS // len(batch))):
            rows = [item for _ in part for item in batch]
            edited = run.edited(neurons[part], to[part], paths)
            for path, logits in edited.items():
                for name, of in list(outcomes.items())[: None if "frozen" in paths else 1]:
                    after = of(logits, rows).double().cpu()
                    after = rearrange(after, "(set example) -> set example", set=len(part))
                    change[path][name][part[:, None], index] = after - clean[name][index]
    names = tuple(neuron_names(neurons))
    return Mediation(names, change, clean, tuple(example.group for example in examples))


def _parts(
    n_all: int, n_paths: int, step: int
) -> Iterator[tuple[Int[Tensor, " set"], tuple[str, ...]]]:
    """Neurons to follow together, and along which paths."""
    for places, paths in (
        (torch.arange(n_paths), PATHS),
        (torch.arange(n_paths, n_all), PATHS[:1]),
    ):
        for part in places.split(step):
            if len(part):
                yield part, paths


class _MediationPass:
    """One batch after its clean pass."""

    def __init__(
        self,
        adapter: ModelAdapter,
        batch: Sequence[Encoded],
        neurons: Int[Tensor, "neuron 2"],
        writes: OutputWeights,
        *,
        check: bool,
    ) -> None:
        self.adapter, self.writes = adapter, writes
        self.old: dict[int, Tensor] = {}

        def last(activation: Tensor) -> Tensor:
            return activation[:, -1].double()

        layers = neurons[:, 0].unique().tolist()
        readers = {
            f"blocks.{layer}.{DEFAULT_SITE}": keep_activation(self.old, layer, last)
            for layer in layers
        }
        rows = [item.prompt_tokens.tolist() for item in batch]
        tokens, mask = pad_left(rows, adapter.pad_id, adapter.device)
        try:
            self.suffix: PartialForward = prefill(
                adapter, tokens, mask, start=tokens.shape[1] - 1, readers=readers, check=check
            )
        except CannotResume as reason:
            raise LensSkillsError(
                f"{reason}; the final norm cannot be held apart from the rest. Remove hooks of "
                "your own, or open the model with ls.load_model."
            ) from reason
        self.final = self.suffix.entering[-1][:, -1]
        self.logits = self.suffix.logits(self.final[:, None])[:, 0]
        gain = frozen_norm(self.suffix.normalise, self.final)
        if gain is None:
            raise LensSkillsError(
                f"the final norm of {adapter.name} is neither a LayerNorm nor an RMSNorm, so its "
                "scale cannot be frozen. Choose a model with one."
            )
        self.gain, self.centred = gain
        read = self._read(self.suffix.normalise(self.final))
        gap = read.double().log_softmax(-1) - self.logits.double().log_softmax(-1)
        if float(gap.abs().max()) > _AGREE:
            raise LensSkillsError(
                f"the logits of {adapter.name} are not its vocabulary projection of the final norm "
                "(a soft cap?), so the norm's share is not defined. Choose another model."
            )

    def _read(self, normal: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_vocab"]:
        weight, bias = self.adapter.unembed_vectors()
        logits = normal.to(weight) @ weight
        return logits if bias is None else logits + bias

    def edited(
        self, neurons: Int[Tensor, "set 2"], to: Float[Tensor, " set"], paths: Sequence[str]
    ) -> dict[str, Float[Tensor, "row d_vocab"]]:
        """Logits along every path, the batch once per set."""
        pairs = zip(neurons.tolist(), to.tolist(), strict=True)
        added = torch.stack([self._added(layer, neuron, value) for (layer, neuron), value in pairs])
        total = torch.zeros_like(added).to(self.final)
        for layer in neurons[:, 0].unique().tolist():
            here = (neurons[:, 0] == layer).nonzero()[:, 0]
            residual = self.suffix.clean(layer + 1, len(here))
            residual = residual + added[here][:, :, None].to(residual)
            total[here] = self.suffix.run(residual, layer + 1)[:, :, -1]
        found = {"total": self._logits(total)}
        if "direct" in paths:
            found["direct"] = self._logits(self.final + added.to(self.final))
        if "frozen" in paths:
            seen = added - added.mean(-1, keepdim=True) if self.centred else added
            normal = self.suffix.normalise(self.final)
            frozen = self._read(normal + (seen * self.gain).to(normal))
            found["frozen"] = rearrange(frozen, "set example v -> (set example) v")
        return found

    def _logits(self, final: Float[Tensor, "set example d_model"]) -> Float[Tensor, "row d_vocab"]:
        rows = rearrange(final, "set example d -> (set example) 1 d")
        return self.suffix.logits(rows)[:, 0]

    def _added(self, layer: int, neuron: int, value: float) -> Float[Tensor, "example d_model"]:
        """What the edit adds to the residual stream."""
        moved = (value - self.old[layer][:, neuron])[None, :, None]
        chosen = torch.tensor([[neuron]])
        added = self.writes.change(self.suffix, (layer, DEFAULT_SITE), chosen, moved)
        if added is None:
            raise LensSkillsError(
                f"in {self.adapter.name} what a neuron of layer {layer} adds to the residual "
                "stream is not known: it has no single output matrix. Choose another model."
            )
        return added[0]
