"""Documents made by hand: an ordinary one, one that is empty, a hostile one and a large one."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from lens_skills.reporting.document import (
    Card,
    ColumnSpec,
    Control,
    Document,
    EveryNeuron,
    Fact,
    Graph,
    GraphEdge,
    GraphNode,
    NeuronPage,
    Picture,
    Quantile,
    Step,
    TokenRow,
    Written,
)

# Sender, receiver, channel, target, effect, its interval, share and q: of SmolLM2's L28N907.
EDGES = (
    ("L28N907", "answer", "answer", "logit_diff", 1.921, 1.588, 2.297, 0.905, 1.2e-07),
    ("L29MLP", "answer", "answer", "logit_diff", -1.142, -1.499, -0.828, -0.538, 8.1e-06),
    ("L26H0", "L26MLP", "up", "L28N907", 2.473, 1.857, 3.094, -0.334, 1.9e-06),
    ("L29N870", "answer", "answer", "logit_diff", -0.683, -0.841, -0.528, -0.322, 1.2e-06),
    ("L26H0", "L26MLP", "gate", "L28N907", -2.333, -3.014, -1.874, 0.315, 1.3e-06),
    ("L26H0", "L28N907", "up", "L28N907", -2.134, -2.641, -1.631, 0.288, 1.0e-06),
    ("L28N907", "L29MLP", "gate", "logit_diff", 0.611, 0.476, 0.815, 0.288, 3.8e-06),
    ("L26H0", "L28N907", "gate", "L28N907", -1.935, -2.330, -1.488, 0.261, 4.2e-07),
    ("L26H0", "L26N1423", "up", "L28N907", 1.736, 1.309, 2.207, -0.234, 2.4e-06),
    ("L27H8", "L28N907", "gate", "L28N907", -1.049, -1.291, -0.795, 0.142, 1.0e-06),
    ("L27H8", "L28N907", "up", "L28N907", -0.911, -1.163, -0.668, 0.123, 3.3e-06),
    ("L26MLP", "L28N907", "up", "L28N907", 0.754, 0.569, 0.927, -0.102, 8.6e-07),
    ("L25H2", "L26MLP", "up", "L28N907", 0.745, 0.501, 1.029, -0.101, 2.3e-05),
    ("L26H0", "L27H6-8", "V", "L28N907", -0.669, -1.066, -0.512, 0.090, 2.1e-05),
    ("L26H0", "L27H6-8", "V", "L28N907", -0.576, -0.938, -0.386, 0.078, 1.9e-04),
)
METRICS = ("plural", "logit_diff")
COLUMNS = (
    ColumnSpec("neuron", "neuron", "Its layer, and its number in it."),
    ColumnSpec("layer", "layer", "From 0.", 0),
    ColumnSpec("metric", "metric", "What its activation goes with."),
    ColumnSpec("r", "r", "Correlation on confirm, over groups.", 3, ("r_low", "r_high")),
    ColumnSpec("effect", "effect", "Of its ablation.", 3, ("low", "high"), "logits"),
    ColumnSpec("q", "q", "False discovery rate, of the selected.", 4),
    ColumnSpec("grade", "grade", "A: causal, B: confirmed, C: associated."),
)
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 100"><rect width="200" height="100" '
    'fill="#fff"/><path d="M10 90L60 40L110 60L190 10" fill="none" stroke="#0072b2"/></svg>'
)
SENTENCE = (
    "The",
    " keys",
    " to",
    " the",
    " old",
    " cabinet",
    " are",
    " on\n",
    " the",
    "  table",
    ".",
)


def ordinary(n_pages: int = 12, n_rows: int = 40) -> Document:
    """Of 4 layers of 100 neurons forty are associated, and twelve of them have a page."""
    random = np.random.default_rng(0)
    rows = tuple(row(k, random) for k in range(n_rows))
    return Document(
        title="Agreement on planted-4",
        found=(
            f"{n_rows} neurons are associated with a metric; 6 of them are causal beside controls.",
            "L3N7 alone: −1.250 logits [−1.500, −1.000].",
        ),
        asked=(
            Fact("task", "agreement: the number of the verb"),
            Fact("metrics", "plural (label), logit_diff"),
            Fact("site", "mlp.hook_post", code=True),
            Fact("position", "last (−1)"),
        ),
        data=(
            Fact("splits", "explore 200 · confirm 200 · intervene 200 examples, 40 groups each"),
            Fact("model", "planted, 4 layers of 100 neurons"),
        ),
        attrition=(
            Step("all", 400, "Every neuron of the model at the site."),
            Step("varies", 399, "Its activation is not the same on every example."),
            Step("associated", n_rows, "False discovery rate of 5 % on explore."),
            Step("confirmed", 12, "The sign and the size hold on confirm."),
            Step("causal", 6, "Its effect is beyond ±δ and beyond the controls'."),
        ),
        grades=(Fact("A", "6 neurons: causal"), Fact("B", "6 neurons: confirmed, not tried")),
        caveats=("The metric label:plural has 40 groups only.", "34 neurons were not tried."),
        missing=(
            Fact("Regulators", "lens-skills regulators runs/agreement --top 20", code=True),
            Fact("Jacobian lens", "needs the model"),
        ),
        pictures=(
            Picture(
                "figure-attrition",
                "Attrition",
                SVG,
                "From 400 neurons to 6.",
                (("step", "neurons"), ("all", 400), ("causal", 6)),
            ),
            Picture("figure-forest", "Effects", SVG, "Six effects with their intervals."),
        ),
        cards=(
            Card(
                "card-verdict",
                "Verdict",
                "L3N7 and 5 others: causal\n  effect −1.250 [−1.500, −1.000]\n" + "-" * 80,
                (("neuron", "effect"), ("L3N7", -1.25)),
            ),
        ),
        columns=COLUMNS,
        rows=rows,
        every=every(4, 100, METRICS),
        neurons=tuple(page(rows[k], random) for k in range(n_pages)),
        circuits=(circuit(),),
        reproduce=("lens-skills study agreement --seed 0 --out runs/agreement",),
        versions=(Fact("lens_skills", "0.2.0"), Fact("torch", "2.13.0")),
        about={"seed": 0},
    )


def row(k: int, random: np.random.Generator) -> dict:
    """Of the k-th neuron: |r| falls with k, the sign alternates."""
    r = (0.95 - 0.02 * k) * (-1) ** k
    tried = k < 13 and k != 4
    effect = float(random.normal()) if tried else None
    return {
        "neuron": f"L{3 - k % 4}N{7 + k}",
        "layer": 3 - k % 4,
        "metric": METRICS[k % 2],
        "r": r,
        "r_low": r - 0.05,
        "r_high": r + 0.04,
        "effect": effect,
        "low": None if effect is None else effect - 0.25,
        "high": None if effect is None else effect + 0.25,
        "q": 0.0001 * (k + 1),
        "grade": "A" if k < 6 else "B" if tried else "C",
    }


def page(
    row: dict, random: np.random.Generator, rows: int = 2, tokens: tuple = SENTENCE
) -> NeuronPage:
    """Five quantiles of `rows` examples; the highest activation of each is at the token read."""
    name = row["neuron"]
    quantiles = []
    for q, part in enumerate(("highest", "60–80 %", "40–60 %", "20–40 %", "lowest")):
        examples = []
        for _ in range(rows):
            values = tuple(float(x) for x in random.normal(0, 0.3, len(tokens) - 1))
            top = 3.0 - 1.2 * q + float(random.normal(0, 0.05))
            examples.append(
                TokenRow(tokens, (*values, top), len(tokens) - 1, top, "cabinet", ("plural = 1",))
            )
        quantiles.append(Quantile(part, 2.5 - 1.2 * q, 3.5 - 1.2 * q, 40, tuple(examples)))
    effect = row["effect"]
    controls = effect is not None and Control(
        tuple(float(x) for x in random.normal(0, 0.04, 200)),
        effect,
        effect - 0.25,
        effect + 0.25,
        0.1,
        "logits",
        "rank 1 of 201",
    )
    return NeuronPage(
        name=name,
        summary=f"{name} is higher on plural subjects; its ablation lowers the logit difference.",
        grade=row["grade"],
        row=row,
        facts=(Fact("AUROC", "0.981 [0.970, 0.992], group-wise"),),
        verdict="causal: beyond ±δ and beyond every control." if controls else "",
        controls=controls or None,
        quantiles=tuple(quantiles),
        written=(
            Written(
                "logit lens",
                "Its output direction through the final norm and the unembedding; logits per unit.",
                ((" are", 0.91), (" were", 0.72), (" have", 0.4)),
                ((" is", -0.95), (" was", -0.61), (" has", -0.33)),
            ),
        ),
        explanation=("It reads the number of the subject, not of the nearest noun.",),
        features=(("feature", "share of variance"), ("plural subject", 0.81), ("length", 0.02)),
        correlated=(("L2N8", 0.83), ("L1N9", -0.64), ("L0N99", 0.21)),
        cluster=("L2N8", "L1N9", "by correlation over 0.6"),
        diagnostics=(Fact("redundancy", "0.31 [0.20, 0.42]"),),
        circuits=("circuit-L28N907",),
        caveats=("One position of one site.",),
    )


def every(n_layers: int, n_neurons: int, metrics: tuple[str, ...]) -> EveryNeuron:
    """r from a formula that the tests can repeat; the second neuron does not vary."""
    n = n_layers * n_neurons
    layer, index = np.divmod(np.arange(n), n_neurons)
    r = {name: np.sin(np.arange(n) * (k + 1.5)) * 0.99 for k, name in enumerate(metrics)}
    for values in r.values():
        values[1] = np.nan
    return EveryNeuron(
        tuple(layer.tolist()),
        tuple(index.tolist()),
        {name: tuple(values.tolist()) for name, values in r.items()},
        {name: 0.213 if k == 0 else None for k, name in enumerate(metrics)},
    )


def circuit() -> Graph:
    """The circuit of SmolLM2's neuron L28N907, and two edges that were not confirmed."""
    names = dict.fromkeys(name for edge in EDGES for name in edge[:2])
    nodes = [GraphNode("token -5", "cabinets", "token", -1, "-5", 0)]
    for name in names:
        kind = "answer" if name == "answer" else "mlp" if "MLP" in name else "head"
        kind = "neuron" if "N" in name else kind
        layer = 30 if kind == "answer" else int(name[1:3])
        # The page's own neuron leads to a page of the document.
        page_name = {"L28N907": "L3N7", "L26N1423": "L2N8"}.get(name, "")
        nodes.append(GraphNode(name, name, kind, layer, "-1", 1, name == "L28N907", page_name))
    edges = [GraphEdge(*edge[:4], "confirmed", *edge[4:]) for edge in EDGES]
    edges += [
        GraphEdge("token -5", "L25H2", "V", "L28N907", "undecided", 0.4, -0.1, 0.9, 0.05, 0.2),
        GraphEdge("token -5", "L26H0", "K", "L28N907", "negligible", -0.02, -0.06, 0.02, 0.0, 0.9),
    ]
    return Graph(
        "circuit-L28N907",
        "L28N907 on agreement",
        tuple(nodes),
        tuple(edges),
        {"logit_diff": "logits", "L28N907": "activation"},
        "A negative effect: the target falls when the edge alone carries the corrupted prompt.",
        "15 edges confirmed of 17",
        ("Edges were proposed by attribution on other pairs.",),
    )


def holes() -> Document:
    """Numbers that are not there, wherever one can be missing."""
    nan, none = float("nan"), dict.fromkeys(("r", "r_low", "r_high", "effect", "low", "high"))
    base = ordinary(2, 2)
    first, second = base.neurons
    token = TokenRow((" one", ""), (nan, 0.0), None, None)
    return replace(
        base,
        rows=({**base.rows[0], **none}, {**base.rows[1], "low": None}),
        neurons=(
            replace(
                first,
                row={**first.row, **none},
                controls=Control((-0.1, nan, 0.2), 0.5, nan, nan, 0.0, "logits", ""),
                quantiles=(Quantile("highest", nan, nan, 1, (token,)),),
            ),
            replace(second, controls=Control((0.1,), nan, nan, nan, nan, "logits", "")),
        ),
        circuits=(
            replace(
                base.circuits[0],
                edges=(GraphEdge("L29MLP", "answer", "", "", "", nan, None, None, None, None),),
                unit={},
            ),
            replace(base.circuits[0], anchor="circuit-none", nodes=(), edges=()),
        ),
    )


def crowded() -> Document:
    """Twenty heads of one layer into a neuron, at two positions."""
    heads = [
        GraphNode(f"{h} {place}", f"L5H{h}", "head", 5, column, place)
        for h in range(20)
        for place, column in enumerate(("-3", "-1"))
    ]
    start = GraphNode("start", "L7N1", "neuron", 7, "-1", 1, start=True)
    edges = tuple(
        GraphEdge(head.id, "start", "gate", "L7N1", "confirmed", -0.1, -0.2, -0.05, None, None)
        for head in heads
    )
    graph = Graph("circuit-L7N1", "L7N1", (*heads, start), edges, {}, "", "")
    return replace(ordinary(2, 2), circuits=(graph,))


def nothing() -> Document:
    """Nothing was found, and nothing else is there."""
    return Document("Nothing here", ("Nothing was found.",), (Fact("task", "noise"),), ())


MARKUP = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'><b>bold</b>"
NASTY = (
    MARKUP,
    "<!--<script>",
    "\u202eright to left",
    "\U0001f469\u200d\U0001f52c emoji",
    "NUL\x00 bell\x07 escape\x1b[31m",
    "line\u2028para\u2029",
    "\ud800 half",
    "__proto__",
    "constructor",
    "long" * 2500,
    "'\"`{{ 7*7 }}${1}",
)


def hostile() -> Document:
    """Everything that can be a text is one of `NASTY`, keys included."""
    random = np.random.default_rng(1)
    text = lambda k: NASTY[k % len(NASTY)]  # noqa: E731
    facts = tuple(Fact(text(k), text(k + 1), k % 2 == 0) for k in range(len(NASTY)))
    columns = (*COLUMNS, *(ColumnSpec(text(k), text(k), text(k + 2)) for k in range(len(NASTY))))
    base = ordinary(3, 14)
    rows = tuple(
        {**row, **{text(k): text(k + j) for k in range(len(NASTY))}, "metric": text(j)}
        for j, row in enumerate(base.rows)
    )
    pages = tuple(
        replace(
            page(rows[k], random, 1, NASTY),
            summary=text(k),
            verdict=text(k),
            facts=facts,
            explanation=NASTY,
            features=((text(0), text(1)), (text(2), text(3))),
            written=(
                Written(text(0), text(2), tuple((t, 0.5) for t in NASTY), ((text(0), -1.0),)),
            ),
            correlated=tuple((t, 0.3) for t in NASTY),
            cluster=NASTY,
            caveats=NASTY,
            circuits=("circuit-__proto__",),
        )
        for k in range(3)
    )
    graph = Graph(
        "circuit-__proto__",
        text(0),
        tuple(GraphNode(t, t, "head", k, t, k, neuron=t) for k, t in enumerate(NASTY)),
        tuple(
            GraphEdge(a, b, a, a, "confirmed", 0.1 * k - 0.3, -1.0, 1.0, None, None)
            for k, (a, b) in enumerate(pairwise(NASTY))
        ),
        {t: t for t in NASTY},
        text(0),
        text(0),
        NASTY,
    )
    return Document(
        title=text(0),
        found=NASTY,
        asked=facts,
        data=facts,
        attrition=tuple(Step(t, 10, t) for t in NASTY),
        grades=facts,
        caveats=NASTY,
        missing=facts,
        pictures=(
            Picture("figure-" + MARKUP, text(0), SVG + MARKUP, text(0), ((text(0),), (text(1),))),
        ),
        cards=tuple(Card(f"card-{k}", t, t, ((t,), (t,))) for k, t in enumerate(NASTY)),
        columns=columns,
        rows=rows,
        every=replace(
            base.every,
            r=dict(zip(("__proto__", MARKUP), base.every.r.values(), strict=True)),
            threshold={},
        ),
        neurons=pages,
        circuits=(graph,),
        reproduce=NASTY,
        versions=facts,
        about={"__proto__": MARKUP},
    )


def large() -> Document:
    """46,080 neurons under 4 metrics, 100 pages with 24 examples of 25 tokens each."""
    random = np.random.default_rng(2)
    rows = tuple(row(k, random) for k in range(1000))
    tokens = tuple(f" word{k}" for k in range(25))
    pages = []
    for k in range(100):
        here = {**rows[k], "neuron": f"L{k % 30}N{k}"}
        full = page(here, random, 5, tokens)
        # 24 examples: the last quantile has one less.
        last = replace(full.quantiles[-1], rows=full.quantiles[-1].rows[:-1])
        pages.append(replace(full, quantiles=(*full.quantiles[:-1], last)))
    return replace(
        ordinary(),
        title="Large",
        rows=rows,
        every=every(30, 1536, ("plural", "logit_diff", "confidence", "entropy")),
        neurons=tuple(pages),
    )
