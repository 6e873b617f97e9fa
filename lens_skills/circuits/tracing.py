"""`circuit`: proposed on one half of the pairs, confirmed edge by edge on the other."""

from collections.abc import Sequence
from typing import Any

from lens_skills.activations import logit_diff, parse_metrics
from lens_skills.activations.stream import BATCH_SIZE
from lens_skills.circuits.anatomy import Anatomy
from lens_skills.circuits.assembly import assemble
from lens_skills.circuits.pairs import check_twins, scenes_of
from lens_skills.circuits.proposals import check_proposals
from lens_skills.circuits.search import Search
from lens_skills.circuits.start import orient, parse_start
from lens_skills.circuits.wiring import Circuit
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt, prompted
from lens_skills.stats.exchange import signs


def circuit(
    model: Any,
    examples: Sequence[Example],
    start: Any = "answer",
    *,
    metric: Any = None,
    proposals: str = "attribution",
    n_edges: int = 60,
    depth: int = 2,
    position: str | int = "last",
    prompt: SoftPrompt | None = None,
    n_draws: int = 2000,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Circuit:
    """The edges through which something is moved and moves the answer, each with an error bar.

    Half of the groups of pairs propose edges, by a gradient or by relevance; on the other half
    each is tested alone by exact path patching (`path_effects`), and the p-values of all edges
    tested are adjusted together (Benjamini-Hochberg).

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: Pairs: examples whose ``corrupted`` twin has as many tokens.
        start: A neuron or head (``"L17N635"``, ``"L9H3"``), a list of those, or ``"answer"``.
        metric: What the answer is measured by; default ``logit_diff()``.
        proposals: ``"attribution"``, ``"integrated"`` or ``"relevance"``; see `gradient_slopes`
            and `relevance_slopes`.
        n_edges: How many edges to test per stage: into the start, into the confirmed senders
            (once per further depth), out of the start, and on from there.
        depth: 1: edges into and out of the start. 2: also into the confirmed senders and out of
            the confirmed receivers (the 16 strongest); and so on.
        position: Where the start is, counted from the end.
        prompt: A soft prompt to read every example with.
        n_draws: Bootstrap draws of the intervals.
        seed: Of the halves and draws.
        batch_size: Pairs at once.

    Raises:
        LensSkillsError: Pairs that are none, or differ in length; fewer than four groups; a start
            this model does not have, or that the corruption does not move; a metric without a
            gradient, or of answers of several tokens; a model whose parts do not add up.

    Source: Goldowsky-Dill et al. 2023 (arXiv 2304.05969) for path patching; Syed et al. 2023
    (arXiv 2310.10348) for proposing edges by a gradient.

    Does not show: edges that were not proposed, which the unexplained share is for; edges that
    act only together; what happens on other prompts or under another corruption.
    """
    check_proposals(proposals)
    check_twins(examples)
    lens = prompted(model, prompt)
    (wanted,) = parse_metrics(logit_diff() if metric is None else metric)
    nodes = parse_start(lens, start, position)
    if n_edges < 1 or depth < 1:
        raise LensSkillsError(f"n_edges={n_edges} and depth={depth} must be at least 1.")
    first, second = halves(examples, seed)
    anatomy = Anatomy(lens)
    proposing = scenes_of(anatomy, first, wanted, batch_size=batch_size)
    testing = scenes_of(anatomy, second, wanted, batch_size=batch_size)
    begun = orient(nodes, proposing, examples, wanted)
    search = Search(
        proposing,
        testing,
        [example.group for example in second],
        begun,
        wanted,
        proposals=proposals,
        n_edges=n_edges,
        n_draws=n_draws,
        seed=seed,
    )
    search.upstream(depth)
    if nodes[0].kind != "answer":
        search.downstream(depth)
    return assemble(search, examples, first, second)


def halves(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """The examples that propose and those that test: no group is in both.

    Raises:
        LensSkillsError: Fewer than four groups.
    """
    groups = sorted({example.group for example in examples})
    if len(groups) < 4:
        raise LensSkillsError(
            f"{len(groups)} groups of examples, and edges are proposed on one half of them and "
            "tested on the other: at least four are needed, 60 for honest intervals."
        )
    order = {
        group: signs([group], 64, seed=seed, purpose="circuit")[0].tolist() for group in groups
    }
    shuffled = sorted(groups, key=lambda group: order[group])
    chosen = set(shuffled[: len(groups) // 2])
    first = [example for example in examples if example.group in chosen]
    return first, [example for example in examples if example.group not in chosen]
