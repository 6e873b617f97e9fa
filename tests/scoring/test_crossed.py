"""A rule and the truth, crossed: a neuron of the one and a neuron of the other are told apart.

In a real HookedTransformer three neurons are planted that write nothing: one fires where a rule
says yes, one where yes is true, and a decoy on a third property of the words. Where the rule is
always right, and the third property goes along, all three are neurons of both; where the three are
crossed, each is of its own.
"""

import copy
from typing import Any

import pytest
import torch

from lens_skills.data import Example
from lens_skills.models.conversion import has_hooked
from lens_skills.scoring import Scores, Selection, score, select, skill_matrix
from lens_skills.tasks import Task
from tests.planted import plant

N_WORDS = 64  # eight for each combination of rule, truth and the third property
CARRIERS = (
    "Mary and John", "The table here", "What is this", "Tom said hello", "If they walk", "She has",
    "He does it", "We have you", "true or false", "Premise and", "The cabinet on", "Anna gave a",
    "yes or no then", "The girls walk", "it went to", "else they do", "John and Mary",
    "here the table", "is this What", "hello Tom said", "they walk If", "has She", "it does He",
    "you have We", "false or true", "and Premise", "on The cabinet", "a gave Anna",
)  # fmt: skip
METRICS = ("label:rule", "label:truth")
# Layer, neuron.
RULE, TRUTH, DECOY = (1, 5), (2, 9), (3, 20)
SIZE = 0.25  # a plant larger than its whole layer would be carried by any rotation of it


def crossed(tokenizer: Any) -> Task:
    """Every word after every carrier; its rule, its truth and the third property are crossed."""
    # Of one token each, so that the last token tells the word.
    plain = sorted(t[1:] for t in tokenizer.get_vocab() if t[0] == "Ġ" and t[1:].isalpha())
    found = []
    for carrier in CARRIERS:
        for place, word in enumerate(f" {word}" for word in plain[:N_WORDS]):
            rule, truth, third = place & 1, place >> 1 & 1, place >> 2 & 1
            found.append(
                Example(
                    f"{carrier}{word}",
                    carrier + word,
                    labels={"rule": rule, "truth": truth},
                    covariates={"third": third},
                    group=carrier,
                    # The control task draws its random labels for the words, as the truth is one.
                    kind=word.strip(),
                )
            )
    return Task("crossed", found)


def confounded(task: Task) -> Task:
    """Only where the rule is right, and the third property goes along."""

    def alike(example: Example) -> bool:
        rule, truth = example.labels["rule"], example.labels["truth"]
        return rule == truth == example.covariates["third"]

    return task.where(alike)


def wide(tokenizer: Any) -> Any:
    """A model of random weights, wide enough to tell the words apart by any three codes."""
    if not has_hooked():
        pytest.skip("this TransformerLens has no HookedTransformer (removed in 4.0)")
    import transformer_lens

    config = transformer_lens.HookedTransformerConfig(
        n_layers=4, d_model=192, d_head=48, n_heads=4, d_mlp=192, n_ctx=64, gated_mlp=True,
        act_fn="silu", normalization_type="RMS", positional_embedding_type="rotary", seed=0,
        rotary_dim=48, d_vocab=len(tokenizer), device="cpu", default_prepend_bos=True,
    )  # fmt: skip
    model = transformer_lens.HookedTransformer(config, copy.deepcopy(tokenizer)).eval()
    with torch.no_grad():
        model.W_E.mul_(20)  # the last word leads, and not what stands before it
    return model


@pytest.fixture(scope="module")
def model(tiny_hf: tuple[Any, Any]) -> Any:
    """A random model with the three neurons in it, each no larger than others of its layer."""
    task, made = crossed(tiny_hf[1]), wide(tiny_hf[1])
    tokens = {e.id: made.to_tokens(e.prompt)[0].tolist() for e in task}
    for (layer, neuron), column in ((RULE, "rule"), (TRUTH, "truth"), (DECOY, "third")):
        sides = [[tokens[e.id] for e in task if e.column(column) == side] for side in (1, 0)]
        plant(made, layer, neuron, *sides, writes=0)
        with torch.no_grad():
            made.blocks[layer].mlp.W_in[:, neuron] *= SIZE
    return made


def scores_of(model: Any, task: Task) -> Scores:
    return score(model, task, metrics=METRICS, n_permutations=100)


def searched(model: Any, task: Task) -> tuple[Scores, list[Selection]]:
    """Scored on some carriers, confirmed on others, and scored once more on the rest."""
    explore, confirm, rest = task.split(0.4, 0.3, 0.3, seed=0)
    found, checked = scores_of(model, explore), scores_of(model, confirm)
    return scores_of(model, rest), [select(found[name], checked[name]) for name in METRICS]


def neurons_of(selection: Selection) -> set[tuple[int, int]]:
    return {(layer, neuron) for layer, neuron in selection.neurons.tolist()}


def test_crossed_they_are_told_apart(model: Any) -> None:
    rest, (of_rule, of_truth) = searched(model, crossed(model.tokenizer))
    assert neurons_of(of_rule) == {RULE}
    assert neurons_of(of_truth) == {TRUTH}
    matrix = skill_matrix(rest, [of_rule, of_truth])
    rows = {(layer, neuron): at for at, (layer, neuron) in enumerate(matrix.neurons.tolist())}
    assert float(matrix.r[rows[RULE], 0]) > 0.9
    assert float(matrix.r[rows[TRUTH], 1]) > 0.9
    assert abs(float(matrix.r[rows[RULE], 1])) < 0.1
    assert abs(float(matrix.r[rows[TRUTH], 0])) < 0.1
    assert matrix.kinds == ["specific", "specific"]
    assert int(matrix.shared[0, 1]) == 0
    # The decoy is neither's.
    unit = rest.places[DECOY]
    assert max(float(rest[name].strength[unit]) for name in METRICS) < 0.1


def test_confounded_they_cannot_be_told_apart(model: Any) -> None:
    """The same neurons and the same search: all three are of both, the decoy too."""
    rest, (of_rule, of_truth) = searched(model, confounded(crossed(model.tokenizer)))
    assert {RULE, TRUTH, DECOY} <= neurons_of(of_rule)
    assert neurons_of(of_rule) == neurons_of(of_truth)
    matrix = skill_matrix(rest, [of_rule, of_truth])
    assert torch.equal(matrix.r[:, 0], matrix.r[:, 1])
    assert set(matrix.kinds) == {"shared"}
    assert float(matrix.metric_r[0, 1]) == pytest.approx(1.0)
    rows = {(layer, neuron): at for at, (layer, neuron) in enumerate(matrix.neurons.tolist())}
    for neuron in (RULE, TRUTH, DECOY):
        assert float(matrix.r[rows[neuron], 0]) > 0.9
