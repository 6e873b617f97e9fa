"""A circuit that was planted is found, without its decoys, if and only if it is there."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.circuits import Circuit, Node, circuit
from lens_skills.circuits.paired_cache import paired_caches
from lens_skills.circuits.path_patching import path_effects
from lens_skills.circuits.targets import ActivationTarget, AnswerTarget
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from tests.planted_circuit import IDLE, MUTE, UNREAD, N, PlantedCircuit, U, planted_circuit, twins

LOW, HIGH = 1, 2


def neuron(layer: int, index: int) -> Node:
    return Node(layer, "neuron", index, "-1")


@pytest.fixture
def planted_model(tiny: Any) -> Iterator[tuple[Any, PlantedCircuit]]:
    with planted_circuit(tiny, twins(), layers=(LOW, HIGH)) as names:
        yield tiny, names


def confirmed(found: Circuit, sender: Node, receiver: Node) -> set[str]:
    return {
        edge.channel
        for edge in found.confirmed
        if (edge.sender, edge.receiver) == (sender, receiver)
    }


def test_the_circuit_works_and_its_decoys_do_not(planted_model: Any) -> None:
    """Exact path patching on what was planted: ground truth for the ground truth."""
    model, names = planted_model
    assert (names.u, names.n) == ("L1N5", "L2N11")
    with ls.config(batch_size=64):
        (cache,) = paired_caches(ModelWeights(as_adapter(model)), twins(40), ls.logit_diff())
    n = neuron(HIGH, N)
    senders = [neuron(LOW, index) for index in (U, UNREAD, MUTE)]
    at_n = ActivationTarget((n,), (torch.ones(1, dtype=torch.float64),), "N")
    clean = cache.post(HIGH)[:, -1, N].mean()
    for channel in ("gate", "up"):
        effects = path_effects(cache, at_n, [(one, n, channel) for one in senders]).mean(1)
        u, unread, mute = effects.tolist()
        assert u < -0.5 * float(clean)
        assert abs(unread) < 0.1 * abs(u)
        assert mute == 0
    answer = Node(4, "answer", None, "-1")
    paths = [(neuron(HIGH, index), answer, "answer") for index in (N, IDLE)]
    planted, idle = path_effects(cache, AnswerTarget(ls.logit_diff()), paths).mean(1).tolist()
    assert planted < -1.0
    assert idle == 0


def test_it_is_found_from_its_neuron_and_no_decoy_is(planted_model: Any) -> None:
    model, names = planted_model
    found = circuit(model, twins(), names.n, n_edges=12, depth=1)
    n, answer = neuron(HIGH, N), Node(4, "answer", None, "-1")
    assert confirmed(found, neuron(LOW, U), n) == {"gate", "up"}
    assert confirmed(found, n, answer) == {"answer"}
    assert not confirmed(found, neuron(LOW, MUTE), n)
    # The strongest edges of all are the planted ones (its MLP holds U's).
    mlp = Node(LOW, "mlp", None, "-1")
    assert {edge.sender for edge in found.top(4)} <= {neuron(LOW, U), mlp, n}


def test_it_is_found_from_the_answer_and_no_decoy_is(planted_model: Any) -> None:
    model, _ = planted_model
    found = circuit(model, twins(), "answer", n_edges=20, depth=2)
    n, answer = neuron(HIGH, N), Node(4, "answer", None, "-1")
    assert confirmed(found, n, answer) == {"answer"}
    assert confirmed(found, neuron(LOW, U), n) == {"gate", "up"}
    idle = neuron(HIGH, IDLE)
    assert not confirmed(found, idle, answer)
    senders = {edge.sender for edge in found.confirmed}
    assert not senders & {idle, neuron(LOW, MUTE)}


def test_without_it_there_is_no_such_edge(tiny: Any) -> None:
    # The planted circuit alone tells these two answers apart; without it nothing does.
    with pytest.raises(LensSkillsError, match="the corruption does not move logit_diff"):
        circuit(tiny, twins(), "answer", n_edges=20, depth=2)
    found = circuit(tiny, twins(answer=" yes", foil=" no"), "answer", n_edges=20, depth=2)
    assert found.confirmed
    planted = {neuron(LOW, U), neuron(HIGH, N)}
    total = abs(found.total)
    for edge in found.confirmed:
        assert edge.sender not in planted or edge.strength < 0.25 * total
        assert (edge.sender, edge.receiver) != (neuron(LOW, U), neuron(HIGH, N))
