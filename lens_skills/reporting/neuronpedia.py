"""Circuits and neurons as files for Neuronpedia and circuit-tracer: `graph`, `feature_details`.

Valid against Neuronpedia's ``graph-schema.json`` and ``feature-details-schema.json``. Where its
pages read a field in a way that the schemas do not say, what is written suits them: a neuron's
number joins its layer and index (Cantor's pairing, schema version 1), the answer's label holds its
probability, two nodes have one link, and a label holds no markup.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lens_skills.circuits import Circuit
from lens_skills.circuits.graph import Edge, Node, Totals
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.activation_quantiles import ActivatingExamples, NeuronExamples
from lens_skills.reporting.paper_cells import chance, rounded
from lens_skills.results import file_name, write_file

TYPES = {
    "token": "embedding",
    "answer": "logit",
    "neuron": "mlp neuron",
    "head": "attention head",
    "mlp": "mlp",
    "norm": "norm scale",
}
"""Of a node of each kind. The first two are Neuronpedia's; it shows any other as a feature."""

WEIGHT = (
    "weight = clean - corrupted: how much the edge as it is raises its target, the mean over "
    "pairs. A positive link raises it, as in attribution graphs. It is minus the effect of exact "
    "path patching that lens_skills prints, which is corrupted - clean."
)
_SAID = 3  # edges in the label of a node
_CLOSING = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"


def write_graph(
    circuit: Circuit, path: str | Path, *, scan: str = "", features_url: str = ""
) -> Path:
    """Writes `graph` as JSON; see `Circuit.to_neuronpedia`."""
    place = Path(path)
    if place.suffix != ".json":
        raise LensSkillsError(f"{place.name!r} is no name of a graph. End it in .json.")
    made = graph(
        circuit, slug=re.sub(r"[^\w-]", "_", place.stem), scan=scan, features_url=features_url
    )
    return _write(place, made)


def graph(
    circuit: Circuit, *, slug: str = "", scan: str = "", features_url: str = ""
) -> dict[str, Any]:
    """A circuit as an attribution graph.

    Confirmed edges; where too few groups tested to have words, all that were tested. Tokens and
    places are those of one pair of the many that the numbers are means over.

    Raises:
        LensSkillsError: A circuit that an earlier version saved; a node that stands before the
            example's first token; an address that is none.
    """
    example = circuit.provenance.get("example")
    if not example:
        raise LensSkillsError(
            f"this circuit of {circuit.target} holds no example to name positions by: an earlier "
            "version saved it. Trace it again."
        )
    if features_url and not re.match(r"https?://\S+$", features_url):
        raise LensSkillsError(
            f"features_url={features_url!r} is no address: give where the features' files will "
            "lie, such as 'https://example.org/features'."
        )
    few = not any(circuit.counts.values())
    edges = [edge for edge in circuit.edges if few or edge.confirmed]
    nodes = {*circuit.start} | {end for edge in edges for end in (edge.sender, edge.receiver)}
    ordered = sorted(nodes, key=lambda node: (node.layer, node.column, node.kind, node.name))
    labels = _Labels(circuit, edges, example)
    about = circuit.provenance
    metadata: dict[str, Any] = {
        "slug": slug or file_name(str(about.get("task", "circuit")), circuit.target),
        "scan": scan or str(about.get("model", "")).rpartition("/")[2].lower(),
        "prompt_tokens": list(example["tokens"]),
        "prompt": example["prompt"],
        "schema_version": 1,
        "info": {
            "description": _description(circuit, example, few),
            "generator": {"name": "lens_skills", "version": about["versions"]["lens-skills"]},
        },
        "generation_settings": _settings(circuit, example),
    }
    if features_url:
        metadata["feature_details"] = {"feature_json_base_url": features_url.rstrip("/")}
    ids = {node: _ids(node, example)["node_id"] for node in ordered}
    return {
        "metadata": metadata,
        "qParams": {
            "pinnedIds": list(ids.values()),
            "supernodes": [],
            "linkType": "both",
            "clickedId": ids[circuit.start[0]],
            "sg_pos": "",
        },
        "nodes": [labels.node(node) for node in ordered],
        "links": [
            _link(together, ids, circuit)
            for together in _bundles(edges)
        ],
    }  # fmt: skip


def _bundles(edges: Sequence[Edge]) -> list[list[Edge]]:
    """The edges between the same two nodes for the same target, which differ in their channel."""
    found: dict[tuple[Node, Node, str], list[Edge]] = {}
    for edge in edges:
        found.setdefault((edge.sender, edge.receiver, edge.target), []).append(edge)
    return list(found.values())


def _link(edges: Sequence[Edge], ids: Mapping[Node, str], circuit: Circuit) -> dict[str, Any]:
    """One link; its weight is the sum over the channels, each patched alone."""
    return {
        "source": ids[edges[0].sender],
        "target": ids[edges[0].receiver],
        "weight": -sum(edge.effect or 0.0 for edge in edges),
        "unit": _totals(circuit, edges[0]).unit,
        "measured_on": edges[0].target,
        "channels": [
            {
                "channel": edge.channel,
                "weight": -(edge.effect or 0.0),
                "low": None if edge.high is None else -edge.high,
                "high": None if edge.low is None else -edge.low,
                "share": edge.share,
                "q": edge.q,
                "verdict": edge.verdict,
            }
            for edge in edges
        ],
    }


def _totals(circuit: Circuit, edge: Edge) -> Totals:
    return next(one for one in circuit.totals if one.target == edge.target)


def number(layer: int, index: int) -> int:
    """One number for a neuron's layer and index, by which its file is named (Cantor's pairing).

    >>> number(3, 42)
    1077
    """
    return (layer + index) * (layer + index + 1) // 2 + index


def _ids(node: Node, example: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that tell a node from every other.

    A feature below 0 is no neuron: -1 an MLP, -2 a norm, -10 - i a head (several that share a key:
    a thousand further down for each).
    """
    place = len(example["tokens"]) + node.column
    if place < 0:
        raise LensSkillsError(
            f"{node} stands before the first of the example's {len(example['tokens'])} tokens, so "
            "it cannot be shown on them. Trace the circuit again on longer prompts."
        )
    layer: str = str(node.layer)
    if node.kind == "token":
        layer, own, feature = "E", example["token_ids"][place], place
    elif _is_logit(node):
        layer, own = str(node.layer + 1), example["answer_id"]
        feature = own
    elif node.kind == "neuron":
        own = node.index or 0
        feature = number(node.layer, own)
    else:
        fixed = {"mlp": -1, "norm": -2}
        own = fixed.get(node.kind, -10 - (node.index or 0) - 1000 * (node.width - 1))
        own -= 10**6 if node.kind == "answer" else 0
        feature = own
    name = "L" if _is_logit(node) else layer
    return {
        "node_id": f"{layer}_{own}_{place}",
        "feature": feature,
        "layer": layer,
        "ctx_idx": place,
        "feature_type": TYPES[node.kind if node.kind != "answer" or _is_logit(node) else "head"],
        "jsNodeId": f"{name}_{own}-{place}",
    }


def _is_logit(node: Node) -> bool:
    """Whether it is the answer itself, not a key or value that its later tokens read."""
    return node.kind == "answer" and node.index is None


class _Labels:
    """What the nodes of a circuit are called, with the numbers of what they send."""

    def __init__(self, circuit: Circuit, edges: Sequence[Edge], example: Mapping[str, Any]) -> None:
        self.circuit, self.edges, self.example = circuit, edges, example

    def node(self, node: Node) -> dict[str, Any]:
        """The node as Neuronpedia reads it."""
        own = _ids(node, self.example) | {"influence": None, "activation": None}
        own["clerp"] = plain(self.text(node))
        own["reverse_ctx_idx"] = 0
        if _is_logit(node):
            own |= {"token_prob": self.example["probability"], "is_target_logit": True}
        return own

    def text(self, node: Node) -> str:
        """Its name, then its strongest edges with their intervals, q and words."""
        if _is_logit(node):
            head = f'Output "{self.example["answer"]}" (p={self.example["probability"]:.3f})'
            parts = [f"{head}, measured by {self.circuit.metric}"]
        else:
            parts = [str(node)]
        if node in self.circuit.start:
            parts += [_said(totals) for totals in self.circuit.totals]
        sent = [edge for edge in self.edges if edge.sender == node]
        sent.sort(key=lambda edge: -edge.strength)
        parts += [self.edge(edge) for edge in sent[:_SAID]]
        if len(sent) > _SAID:
            parts.append(f"{len(sent) - _SAID} more")
        return "; ".join(parts)

    def edge(self, edge: Edge) -> str:
        """``to L17N635 gate +0.12 [+0.08, +0.16] activation, q 0.003, confirmed``."""
        weight = f"{-(edge.effect or 0.0):+.3g}"
        if edge.low is not None and edge.high is not None:
            weight += f" [{-edge.high:+.3g}, {-edge.low:+.3g}]"
        unit = _totals(self.circuit, edge).unit
        weight = weight.replace("-", "\N{MINUS SIGN}")
        said = f"to {edge.receiver} {edge.channel} {weight} {unit} of {edge.target}"
        if edge.q is not None:
            said += f", q {chance(edge.q)}"
        return said + (f", {edge.verdict}" if edge.verdict else "")


def _said(totals: Totals) -> str:
    ends = ""
    if totals.low is not None and totals.high is not None:
        ends = f" [{-totals.high:+.3g}, {-totals.low:+.3g}]"
    return (
        f"{totals.part}: in all {-totals.total:+.3g}{ends} {totals.unit} of {totals.target}, "
        f"{totals.unexplained:.0%} unexplained"
    )


def plain(text: str) -> str:
    """A label that can be put into a page as it is: nothing in it is markup.

    >>> plain("a <b>") == "a \N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}b" + _CLOSING
    True
    """
    return text.replace("<", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}").replace(">", _CLOSING)


def _description(circuit: Circuit, example: Mapping[str, Any], few: bool) -> str:
    words = ", ".join(f"{n:,} {word}" for word, n in circuit.counts.items())
    shown = f"{words}; the confirmed are shown"
    if few:
        shown = "no words, as too few groups test; all are shown"
    parts = [
        f"Circuit of {circuit.target} ({circuit.provenance.get('model')}, "
        f"{circuit.provenance.get('task')}); {len(circuit.edges):,} edges tested by exact path "
        f"patching: {shown}.",
        WEIGHT,
        *(f"{_said(totals)}." for totals in circuit.totals),
        f"Numbers are means over {circuit.n_examples:,} pairs in {circuit.n_groups:,} groups with "
        "95 % intervals by group, at positions counted from the end; the prompt and its tokens are "
        f"those of one of them ({example['id']}), whose corrupted twin is "
        f"{example['corrupted']!r}.",
        "A link is one edge or the sum of several channels (Q, K, V of a head; gate and up of an "
        "MLP), each patched alone: its channels are in the link. A head that is read at one "
        "position and writes at another is two nodes without a link.",
        *circuit.notes,
    ]  # fmt: skip
    return plain(" ".join(parts))


def _settings(circuit: Circuit, example: Mapping[str, Any]) -> dict[str, Any]:
    about = circuit.provenance
    return {
        "weight": WEIGHT,
        "metric": circuit.metric,
        "unit": circuit.unit,
        "start": circuit.target,
        "proposals": circuit.proposals,
        "epsilon": circuit.epsilon,
        "n_stages": circuit.n_stages,
        "n_examples": circuit.n_examples,
        "n_groups": circuit.n_groups,
        "example": {key: example[key] for key in ("id", "corrupted_tokens", "answer")},
        **{key: about.get(key) for key in ("n_edges", "n_draws", "seed", "split", "versions")},
    }


def write_features(
    examples: ActivatingExamples, folder: str | Path, *, evidence: pd.DataFrame | None = None
) -> Path:
    """Writes `feature_details` of each neuron; see `ActivatingExamples.to_neuronpedia`."""
    place, files = Path(folder), {}
    for one in examples.neurons:
        made = feature_details(examples, one, evidence=evidence)
        files[one.name] = f"{made['index']}.json"
        _write(place / files[one.name], made)
    _write(place / "neurons.json", files)
    return place


def feature_details(
    examples: ActivatingExamples, neuron: NeuronExamples, *, evidence: pd.DataFrame | None = None
) -> dict[str, Any]:
    """One neuron: its examples from the highest activations down, and the tokens it writes.

    ``evidence``: a frame of `Study.evidence`, `Selection.graded` or `Verdict.frame`, whose row of
    the neuron is said in words.

    Raises:
        LensSkillsError: A unit that is no neuron of an MLP.
    """
    known = re.fullmatch(r"L(\d+)N(\d+)", neuron.name)
    if known is None:
        raise LensSkillsError(
            f"{neuron.name} is no neuron of an MLP, and Neuronpedia's files have no number for "
            "others. Export examples of neurons at mlp.hook_post."
        )
    written = next(iter(neuron.writes), None)
    return {
        "index": number(int(known[1]), int(known[2])),
        "top_logits": [text for text, _ in written.promoted] if written else [],
        "bottom_logits": [text for text, _ in written.suppressed] if written else [],
        "examples_quantiles": [
            {
                "quantile_name": f"{part.name}: activation {rounded(part.low, 3)} to "
                f"{rounded(part.high, 3)}, {part.n_examples:,} examples",
                "examples": [
                    {
                        "tokens": list(one.tokens),
                        "tokens_acts_list": list(one.values),
                        "train_token_ind": 0 if one.read is None else one.read,
                        "is_repeated_datapoint": False,
                    }
                    for one in part.excerpts
                ],
            }
            for part in neuron.quantiles
        ],
        "name": neuron.name,
        "description": plain(_neuron_text(examples, neuron.name, written, evidence)),
    }


def _neuron_text(
    examples: ActivatingExamples, name: str, written: Any, evidence: pd.DataFrame | None
) -> str:
    about = examples.provenance
    parts = [
        f"{name} of {about.get('model')}, read at {examples.site}, {examples.position}, on "
        f"{len(examples.examples):,} examples of {about.get('task')}."
    ]
    if written is not None:
        parts.append(f"Tokens: {written.how}.")
    rows = [] if evidence is None else evidence.to_dict("records")
    row: Mapping[Any, Any] = next((one for one in rows if one["name"] == name), {})

    def with_ends(key: str, low: str, high: str) -> str:
        text = f"{row[key]:+.3g} [{row[low]:+.3g}, {row[high]:+.3g}]"
        return text.replace("-", "\N{MINUS SIGN}")

    if _known(row.get("r_confirm")):
        r = with_ends("r_confirm", "low", "high")
        parts.append(f"r on the confirm split {r} (95 %), q {chance(row['q_confirm'])}.")
    if _known(row.get("grade")) and row["grade"]:
        parts.append(f"Grade {row['grade']}.")
    # A verdict's own frame, or the evidence that it was added to.
    added = _known(row.get("effect_low"))
    low, high, q, word = ("low", "high", "q", "label")
    if added:
        low, high, q, word = ("effect_low", "effect_high", "effect_q", "verdict")
    if _known(row.get("effect")) and _known(row.get(word)):
        among = f", q {chance(float(row[q]))}" if _known(row.get(q)) else ""
        parts.append(
            f"Ablated, the metric changes by {with_ends('effect', low, high)} (edited - clean, "
            f"95 %){among}: {row[word]}."
        )
    return " ".join(parts)


def _known(value: Any) -> bool:
    return value is not None and value == value


def _write(path: Path, value: Any) -> Path:
    return write_file(path, json.dumps(value, indent=1, allow_nan=False).encode())
