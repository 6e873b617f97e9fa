"""`faithfulness`: how much of what the whole model does a circuit does alone."""

from collections.abc import Sequence
from typing import Any

from lens_skills.activations import parse_metrics
from lens_skills.activations.stream import BATCH_SIZE
from lens_skills.circuits.alternatives import Alternatives
from lens_skills.circuits.anatomy import Anatomy
from lens_skills.circuits.curve import Curve, Faithfulness
from lens_skills.circuits.edge import Edge
from lens_skills.circuits.evaluation import Evaluation, distinct
from lens_skills.circuits.pairs import scenes_of
from lens_skills.circuits.start import upstream_target
from lens_skills.circuits.target import Answer, Target
from lens_skills.circuits.wiring import Circuit
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt, prompted

EPSILON = 0.1


def faithfulness(
    model: Any,
    examples: Sequence[Example],
    circuit: Circuit,
    *,
    metric: Any = None,
    sizes: Sequence[int] | None = None,
    n_random: int = 20,
    removals: bool = True,
    epsilon: float = EPSILON,
    prompt: SoftPrompt | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Faithfulness:
    """What a circuit's confirmed edges do when every other edge carries the corrupted prompt.

    Upstream (and for a behaviour): the corrupted prompt, with the clean one entering at the input
    tokens and at senders whose own inputs were not tested, and travelling along the circuit only.
    Downstream: the clean prompt, with the start's activation corrupted and sent along the circuit
    only, until it has left the nodes whose out-edges were tested. Everything is computed anew;
    nothing is linearised. With all edges the first is the clean prompt exactly, and the second
    the start patched whole; with none both are the other end of the gap.

    - **faithfulness** at each size, strongest edges first: (m(circuit) - m(empty)) / (m(whole) -
      m(empty)), a ratio of means with a cluster-bootstrap interval.
    - **completeness**: the share that is left with all edges *but* the circuit's.
    - **minimality**: each edge removed from the circuit in turn.
    - **equivalence**: random circuits of equal size on the same receivers (downstream: from the
      same senders), their senders taken as they are on the clean prompt, which favours them; and
      whether the circuit lies within ``epsilon`` of the whole.

    An edge of a single neuron is left out where the circuit holds that of its whole MLP.

    Args:
        model: The model the circuit was found in.
        examples: Pairs, best others than those the circuit was found on.
        circuit: From `lens_skills.circuit`.
        metric: Of the answer; None: the circuit's own, by its name.
        sizes: Numbers of edges to run; None: about two per doubling.
        n_random: Random circuits, each at every size.
        removals: Whether to run the circuit without each of its edges.
        epsilon: Of the equivalence test.
        prompt: The soft prompt the circuit was found with.
        seed: Of random circuits and bootstrap.
        batch_size: Pairs at once.

    Raises:
        LensSkillsError: Nothing confirmed that can run; another model; a gap that includes 0.

    Source: faithfulness of edges against size, and the areas: Mueller et al. 2025
    (arXiv 2504.13151), there over shares of all edges on a linear axis; faithfulness,
    completeness, minimality: Wang et al. 2022 (arXiv 2211.00593); tests against random circuits:
    Shi et al. 2024 (arXiv 2410.13032).

    Does not show: that the circuit is the only one; many circuits of a size may do as much.
    """
    lens = prompted(model, prompt)
    _same_model(lens, circuit)
    found = parse_metrics(circuit.metric if metric is None else metric)
    anatomy = Anatomy(lens)
    scenes = scenes_of(anatomy, examples, found[0], batch_size=batch_size)
    groups = [example.group for example in examples]
    answer = Answer(found[0], found[0].name)
    curves: list[Curve] = []
    notes: list[str] = []
    for account in circuit.accounts:
        tested = [edge for edge in circuit.edges if edge.target == account.target and _runs(edge)]
        held = distinct([edge for edge in tested if edge.confirmed])
        if not held:
            notes.append(f"{account.part}: no confirmed edge can run")
            continue
        ends_there = account.part == "upstream" and circuit.start[0].kind != "answer"
        target: Target = upstream_target(circuit, examples) if ends_there else answer
        one = Evaluation(
            account.part, held, tuple(tested), circuit.start, target, scenes, groups, seed
        )
        curves.append(
            one.curve(
                sizes=None if sizes is None else [k for k in sizes if k <= len(held)],
                n_random=n_random,
                removals=removals,
                epsilon=epsilon,
                n_edges=_count(one),
            )
        )
    if not curves:
        raise LensSkillsError(
            f"no confirmed edge of the circuit of {circuit.target} can run, so there is nothing "
            "to be faithful. Test more edges (n_edges=), or use more pairs."
        )
    halves = [circuit.provenance.get(half, {}) for half in ("proposed_on", "tested_on")]
    seen = {one for half in halves for one in half.get("example_ids", ())}
    again = sum(example.id in seen for example in examples)
    if again:
        notes.append(f"{again} of {len(examples)} pairs had part in finding the circuit")
    return Faithfulness(
        curves=tuple(curves),
        n_examples=len(examples),
        n_groups=len(set(groups)),
        n_unrun=sum(not _runs(edge) for edge in circuit.confirmed),
        epsilon=epsilon,
        notes=tuple(notes),
        provenance={
            "model": lens.name,
            "model_fingerprint": lens.fingerprint(),
            "start": circuit.target,
            "task": getattr(examples, "name", "examples"),
            "split": getattr(examples, "split_name", "all"),
            "metric": found[0].name,
            "seed": seed,
            "example_ids": [example.id for example in examples],
        },
    )


def _runs(edge: Edge) -> bool:
    """The scale of a norm is computed anew in every run: it is no edge there."""
    return edge.sender.kind != "norm" and edge.channel != "scale"


def _count(one: Evaluation) -> int:
    """How many edges the whole graph has, or its part behind the nodes that are ruled."""
    others = Alternatives(one.scenes[0].anatomy)
    if one.upstream:
        n_columns = max(scene.n_columns for scene in one.scenes)
        return others.count(n_columns, stop=one.target.stop)
    return sum(len(others.channels(node)) for node in one.alone().ruled or ())


def _same_model(lens: Any, circuit: Circuit) -> None:
    known = circuit.provenance.get("model_fingerprint")
    if known is not None and known != lens.fingerprint():
        raise LensSkillsError(
            f"the circuit was found in {circuit.provenance.get('model')}, and this is another "
            f"model or other weights ({lens.name}). Its edges mean nothing here."
        )
