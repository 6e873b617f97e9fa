"""Circuits of answers of several tokens: each number from ordinary passes, one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.circuits import Edge, Node, circuit, faithfulness
from lens_skills.circuits.edge_attribution import (
    channels_of,
    edges_into,
    edges_out_of,
    target_gradients,
)
from lens_skills.circuits.graph import Channel
from lens_skills.circuits.paired_cache import PairedCache, paired_caches
from lens_skills.circuits.path_patching import (
    clean_value,
    path_effects,
    whole_input,
    whole_output,
)
from lens_skills.circuits.run_circuit import CircuitRun, EdgeScheme, RandomCircuits
from lens_skills.circuits.targets import AnswerTarget
from lens_skills.circuits.whole_graph import graph_areas, rank_edges
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from tests.circuits.test_discovery import pairs
from tests.circuits.test_run_circuit import all_edges, examples

TARGET = AnswerTarget(ls.logit_diff())
ANSWER = Node(4, "answer", None, "-1")
HOLD = Callable[[int, Tensor], Tensor]


def longer(each: Sequence[Example]) -> list[Example]:
    """Answer and foil of three and two tokens, of which the first is the same in some pairs."""
    answers = ((" is on the", " are on"), (" is on the", " is in"))
    return [
        replace(one, answer=answers[k % 2][0], foil=answers[k % 2][1]) for k, one in enumerate(each)
    ]


@pytest.fixture(scope="module")
def cache(tiny: Any) -> PairedCache:
    (found,) = paired_caches(ModelWeights(as_adapter(tiny)), longer(examples()), ls.logit_diff())
    return found


class Oracle:
    """Ordinary passes over the prompt with one continuation behind it, unpadded."""

    def __init__(self, cache: PairedCache, row: int) -> None:
        self.adapter: Any = cache.adapter
        self.clean, self.twin = (
            items[row].prompt_tokens.tolist() for items in (cache.batch, cache.twins)
        )
        item = cache.batch[row]
        self.paths: list[Any] = [item.answer_tokens, item.foil_tokens]

    def read(self, prompt: list[int], path: Any, name: str, **editors: Any) -> Tensor:
        """An activation of a pass, ``[position, …]``."""
        seen: list[Tensor] = []
        self.log_probability(prompt, path, editors, {name: seen.append})
        return seen[0][0].clone()

    def log_probability(
        self, prompt: list[int], path: Any, editors: Any, readers: Any = None
    ) -> float:
        tokens = torch.tensor([[*prompt, *path[:-1]]])
        at = torch.arange(len(prompt) - 1, tokens.shape[1])[None]
        logits = self.adapter.forward(
            tokens, torch.ones_like(tokens).bool(),
            readers=readers or {}, logits_at=at, editors=editors,
        )  # fmt: skip
        shares = logits[0].double().log_softmax(-1)
        return float(shares.gather(-1, torch.tensor(path)[:, None]).sum())

    def odds(self, prompt: list[int], editors: Callable[[Any], Any] = lambda path: {}) -> float:
        answer, foil = (self.log_probability(prompt, p, editors(p)) for p in self.paths)
        return answer - foil

    def patched(self, sender: Node, receiver: Node, channel: str) -> float:
        """The effect of one edge into a key or value, for the prompt's or the answer's readers."""
        layer, column, n = receiver.layer, receiver.column, len(self.clean)
        name = "hook_embed" if sender.kind == "token" else f"blocks.{sender.layer}.hook_mlp_out"
        hook = f"blocks.{layer}.attn.hook_{channel.lower()}"

        def editors(path: Any) -> dict[str, Any]:
            here, there = (self.read(p, path, name)[n + column] for p in (self.clean, self.twin))

            def push(x: Tensor) -> Tensor:
                x = x.clone()
                x[0, n + column] += there - here
                return x

            pushed = {f"blocks.{layer}.hook_resid_pre": push}
            new = self.read(self.clean, path, hook, **pushed)[n + column].flatten()
            after = self.read(self.clean, path, f"blocks.{layer}.hook_resid_post")
            own = self.adapter.d_head
            group = slice((receiver.index or 0) // receiver.width * own, None)
            group = slice(group.start, group.start + own)

            def put(x: Tensor) -> Tensor:
                flat = x.clone().flatten(2)
                flat[0, n + column, group] = new[group]
                return flat.view_as(x)

            def hold(x: Tensor) -> Tensor:
                held = slice(None, n) if receiver.kind == "answer" else slice(n, None)
                x = x.clone()
                x[0, held] = after[held]
                return x

            return {hook: put, f"blocks.{layer}.hook_resid_post": hold}

        return self.odds(self.clean, editors) - self.odds(self.clean)


TOKEN = Node(-1, "token", None, "-3")
PATHS: list[tuple[Node, Node, Channel]] = [
    (TOKEN, Node(2, "answer", 2, "-3", 2), "K"),
    (TOKEN, Node(2, "answer", 0, "-3", 2), "V"),
    (TOKEN, Node(2, "head", 0, "-3", 2), "V"),
    (Node(0, "mlp", None, "-1"), Node(3, "answer", 0, "-1", 2), "V"),
    (Node(1, "mlp", None, "-2"), Node(2, "answer", 2, "-2", 2), "V"),
    (Node(1, "mlp", None, "-2"), Node(2, "head", 2, "-2", 2), "K"),
]


def test_an_edge_does_what_two_ordinary_passes_say(cache: PairedCache) -> None:
    """Keys and values as the answer's tokens read them, and as the prompt's do."""
    found = path_effects(cache, TARGET, PATHS)
    for row in range(0, len(cache), 3):
        oracle = Oracle(cache, row)
        for place, path in enumerate(PATHS):
            wanted = oracle.patched(*path)
            assert float(found[place, row]) == pytest.approx(wanted, abs=2e-5), path
    assert float(found.abs().amin(1).min()) >= 0
    assert float(found.abs().amax(1).min()) > 1e-4


def test_totals_are_those_of_the_two_prompts(cache: PairedCache, tiny: Any) -> None:
    task = longer(examples())
    there = [replace(one, prompt=str(one.corrupted)) for one in task]
    clean, corrupted = (
        evaluate(tiny, some, ls.logit_diff())["logit_diff"] for some in (task, there)
    )
    torch.testing.assert_close(
        clean_value(cache, TARGET)[0].double().cpu(), clean, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        whole_input(cache, TARGET).double(), corrupted - clean, atol=1e-4, rtol=0
    )


def behind() -> list[Edge]:
    """Every edge into what the answer's later tokens read."""
    plain = [edge for edge in all_edges() if edge.channel in "KV"]
    return [replace(e, receiver=replace(e.receiver, kind="answer")) for e in plain]


def test_the_whole_graph_is_the_clean_prompt_and_none_the_corrupted(cache: PairedCache) -> None:
    clean = clean_value(cache, TARGET)[0].double().cpu()
    corrupted = clean + whole_input(cache, TARGET).double()
    alone, without = CircuitRun(cache, EdgeScheme()), CircuitRun(cache, EdgeScheme(removed=True))
    every = [*all_edges(), *behind()]
    near: dict[str, Any] = {"atol": 1e-3, "rtol": 0.0}
    none, whole, prompts = alone.measure([[], every, all_edges()], TARGET).double()
    torch.testing.assert_close(none, corrupted, **near)
    torch.testing.assert_close(whole, clean, **near)
    # Without what the answer's tokens read of the prompt, much is missing.
    assert float((prompts - clean).abs().max()) > 1e-2
    whole, none = without.measure([[], every], TARGET).double()
    torch.testing.assert_close(whole, clean, **near)
    torch.testing.assert_close(none, corrupted, **near)


def test_one_edge_alone_or_missing(cache: PairedCache) -> None:
    """With all but one edge left on the clean prompt it is path patching of that edge."""
    scheme = EdgeScheme("clean", False, frozenset())
    for sender, receiver, channel in PATHS[:2]:
        edge = Edge(sender, receiver, channel, "logit_diff", 0.0)
        patched = CircuitRun(cache, replace(scheme, tokens=True, restricted=None))
        (value,) = patched.measure([[edge]], TARGET).double()
        wanted = path_effects(cache, TARGET, [edge.key])[0]
        found = value - clean_value(cache, TARGET)[0].double().cpu()
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_proposals_agree_with_small_changes(cache: PairedCache) -> None:
    """A gradient is the effect of a small change, in both directions, of both kinds of reader."""
    gradients = target_gradients(cache, TARGET)
    assert {channel for _, channel in gradients.behind} == {"K", "V"}
    suffix, n = cache.clean.suffix, cache.n_columns
    generator = torch.Generator().manual_seed(0)
    for kind, of in (("answer", gradients.behind), ("head", gradients.by)):
        for layer, channel in ((1, "V"), (2, "K")):
            slope = of[layer, channel]
            push = torch.randn(slope.shape, generator=generator)
            push[:, :-1] = 0
            ends = []
            for size in (2e-3, -2e-3):

                def put(x: Tensor, size: float = size, push: Tensor = push) -> Tensor:
                    flat = x.clone().flatten(2)
                    flat[:, :n] += size * push
                    return flat.view_as(x)

                editors = {f"blocks.{layer}.attn.hook_{channel.lower()}": put}
                out = suffix.run(suffix.clean(layer, 1), layer, stop=layer + 1, editors=editors)
                held = slice(n) if kind == "answer" else slice(n, None)
                out[0, :, held] = suffix.entering[layer + 1][:, held]
                ends.append(TARGET.of(cache, {}, suffix.run(out, layer + 1))[0])
            found = (ends[0] - ends[1]) / 4e-3
            wanted = (slope * push).flatten(1).sum(1).double()
            torch.testing.assert_close(found, wanted, atol=2e-2, rtol=5e-2)


def test_edges_into_the_answer_and_out_of_a_neuron(cache: PairedCache) -> None:
    gradients = target_gradients(cache, TARGET)
    channels = channels_of(cache, ANSWER)
    assert len(channels) == 1 + 4 * 2 * 3 * 2
    into = edges_into(cache, channels, gradients).one
    assert {receiver.kind for _, receiver, _ in into} == {"answer"}
    start = Node(1, "neuron", 2, "-3")
    out = edges_out_of(cache, start, gradients).one
    assert {(r.kind, c) for _, r, c in out if r.kind == "answer"} == {
        ("answer", "K"),
        ("answer", "V"),
    }
    graph = RandomCircuits(cache.weights, reads_on=True)
    counted = sum(len(graph.senders(node)) for node, _ in channels)
    plain = RandomCircuits(cache.weights)
    assert graph.count(3) - plain.count(3) == counted - len(graph.senders(ANSWER))
    effect = whole_output(cache, TARGET, [start])
    assert float(effect.abs().max()) > 0


def test_a_circuit_is_found_runs_alone_and_is_drawn(tiny: Any, tmp_path: Any) -> None:
    task = longer(pairs(60))
    found = circuit(tiny, task, "answer", n_edges=12, depth=1, n_draws=200)
    names = {edge.receiver.name for edge in found.edges}
    assert any(name.startswith("answer L") for name in names)
    assert "answer L" in repr(found)
    held = faithfulness(tiny, task, found, n_random=2, removals=False)
    (curve,) = held
    assert curve.whole - curve.empty == pytest.approx(-found.total, rel=0.5)
    found.to_neuronpedia(tmp_path / "answers.json")
    again = type(found).load(found.save(tmp_path / "circuit"))
    assert again.edges == found.edges


def test_areas_over_the_whole_graph(cache: PairedCache) -> None:
    ranked = rank_edges([cache], TARGET, target_gradients)
    assert {(r.kind, c) for _, r, c in ranked} >= {("answer", "K"), ("answer", "V")}
    areas = graph_areas([cache], TARGET, ranked)
    assert areas.faithfulness[0] == pytest.approx(0.0, abs=0.5)
    assert areas.faithfulness[-1] == pytest.approx(1.0)


def test_relevance_takes_answers_of_one_token(tiny: Any) -> None:
    with pytest.raises(LensSkillsError, match="answers of one token"):
        circuit(tiny, longer(pairs(60)), "answer", proposals="relevance")
