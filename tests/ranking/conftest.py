"""A small task with a label, categories and a number, and what plain PyTorch makes of it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.models import as_adapter

NOUNS = ("key", "keys", "boy", "boys", "girl", "girls", "author", "authors")
PLACES = ("store", "table", "cabinet")
N_LAYERS, WIDTH = 4, 48


def make_task() -> ls.Task:
    """48 prompts: singular or plural, in one of three places, a digit from 0 to 5."""
    found = []
    for place, noun in enumerate(NOUNS):
        for which, where in enumerate(PLACES):
            for digit in (place % 3, 3 + which):
                plural = int(noun.endswith("s"))
                found.append(
                    ls.Example(
                        f"{noun}/{where}/{digit}",
                        f"Near the {where} {digit} the {noun}",
                        answer=" are" if plural else " is",
                        foil=" is" if plural else " are",
                        labels={"plural": plural, "place": where},
                        covariates={"digit": digit, "two": where if where != "table" else "store"},
                        group=f"{noun.rstrip('s')}/{where}",
                    )
                )
    return ls.Task("nouns", found)


@pytest.fixture(scope="session")
def nouns() -> ls.Task:
    return make_task()


class Plain:
    """The tiny model as transformers runs it, one prompt at a time: the oracle of every pass."""

    def __init__(self, hf: tuple[Any, Any], adapter: Any) -> None:
        self.model, self.adapter = hf[0], adapter

    def run(
        self, example: ls.Example, *, ablate: tuple[int, Any] | None = None
    ) -> tuple[dict[str, list[Tensor]], Tensor]:
        """Gates and neurons of every layer (all tokens), and the logits of the last token."""
        seen: dict[str, list[Tensor]] = {"gate": [], "post": []}
        handles = []
        for layer, block in enumerate(self.model.model.layers):
            handles.append(
                block.mlp.gate_proj.register_forward_hook(
                    lambda module, args, out: seen["gate"].append(out[0])
                )
            )

            def keep(module: Any, args: Any, layer: int = layer) -> Any:
                post = args[0]
                if ablate is not None and ablate[0] == layer:
                    post = ablate[1](post)
                if post.requires_grad:
                    post.retain_grad()
                seen["post"].append(post)
                return (post,)

            handles.append(block.mlp.down_proj.register_forward_pre_hook(keep))
        try:
            tokens = torch.tensor([self.adapter.encode(example.prompt)])
            logits = self.model(tokens).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return seen, logits

    def odds(self, example: ls.Example, logits: Tensor) -> Tensor:
        """The logit of the answer minus that of the foil, one token each."""
        whole = [self.adapter.encode(example.prompt + str(text)) for text in
                 (example.answer, example.foil)]  # fmt: skip
        n_tokens = len(self.adapter.encode(example.prompt))
        assert [len(ids) for ids in whole] == [n_tokens + 1] * 2
        return logits[whole[0][-1]] - logits[whole[1][-1]]

    def activations(self, examples: Sequence[ls.Example], what: str) -> Tensor:
        """``[row, layer * neuron]`` at the last token, float64."""
        rows = []
        for example in examples:
            with torch.no_grad():
                seen, _ = self.run(example)
            last = [part[-1] if what == "gate" else part[0, -1] for part in seen[what]]
            rows.append(torch.cat(last))
        return torch.stack(rows).double()


@pytest.fixture(scope="session")
def plain(tiny_hf: tuple[Any, Any], tiny_folder: Any) -> Plain:
    # Any implementation gives the same token ids; the bridge is in every TransformerLens.
    from transformer_lens.model_bridge import TransformerBridge

    model, tokenizer = tiny_hf
    import copy

    bridge = TransformerBridge.boot_transformers(
        str(tiny_folder), hf_model=copy.deepcopy(model), tokenizer=copy.deepcopy(tokenizer),
        device="cpu", dtype=torch.float32,
    )  # fmt: skip
    return Plain(tiny_hf, as_adapter(bridge))
