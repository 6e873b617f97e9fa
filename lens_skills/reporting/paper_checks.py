"""Columns of the tables in print: tasks, prompts, written texts, explanations and diagnostics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from lens_skills.reporting.paper_cells import BY_GROUP, ENDS, Parts, about, size_of, with_unit
from lens_skills.reporting.paper_cells import PaperColumn as Column


def _dissection(result: Any) -> Parts:
    caption = (
        f"Neurons and the concepts they go with{about(result)}, by soft-WPMI and by binned mutual "
        "information; p: family-wise over neurons and concepts, permuted within groups; wins: on "
        f"how many of {result.n_explore:,} examples it wins its cluster at "
        f"{100 * result.named_share:g} % active."
    )
    columns = [
        Column("neuron", "name"),
        Column("wins (%)", "wins", "share"),
        Column("soft-WPMI", "wpmi"),
        Column("p", "wpmi_p", "number"),
        Column("information", "information"),
        Column("bits", "information_value", "number"),
        Column("p", "information_p", "number"),
    ]
    return caption, columns, result.frame(), "neurons"


def _memorisation(result: Any) -> Parts:
    p = result.p
    caption = (
        f"Entropy and mutual information of neurons{about(result)}: means {result.entropy:.2f} "
        "bits "
        f"and {result.information:.2f} nats; {result.word}, by ranks among "
        f"{len(result.random_entropy):,} random sets ("
        + ", ".join(f"{name} p = {value:.2g}" for name, value in p.items())
        + ")."
    )
    columns = [
        Column("neuron", "name"),
        Column("entropy (bits)", "entropy", "number"),
        Column("information (nats)", "information", "number"),
    ]
    if len(result.controls):
        per_layer = result.controls.groupby("layer").size().min()
        caption += (
            f" p, q: of a neuron by itself, among {per_layer:,} random neurons of its layer, for "
            "few values that are shared (shortcut) and for many of its own (example)."
        )
        for kind in ("shortcut", "example"):
            columns += [
                Column(f"{kind} p", f"{kind}_p", "p"),
                Column(f"{kind} q", f"{kind}_q", "p"),
            ]
    return caption, columns, result.frame(), "neurons"


def _redundancy(result: Any) -> Parts:
    caption = (
        f"Neurons by how alike their activations are{about(result)}: clusters cut at 1 − |r| = "
        f"{result.threshold:.2g}; r: with the cluster's representative."
    )
    columns = [
        Column("neuron", "name"),
        Column("cluster", "cluster", "count"),
        Column("representative", "representative"),
        Column("r", "r", "number", signed=True),
    ]
    return caption, columns, result.frame(), "neurons, the largest cluster first"


def _segmentation(result: Any) -> Parts:
    tuned = f"the best on {result.n_tune:,} other texts" if result.n_tune else "given"
    caption = (
        f"Texts cut into {', '.join(result.skills)} by {len(result.neurons):,} neurons"
        f"{about(result)}: boundary F1 (± {result.tolerance} token), means over "
        f"{len(result.scores):,} texts with 95 % intervals; gain: of the cuts found over these, "
        f"text by text. Price of a boundary {result.price:.3g} nats, {tuned}; means and spreads "
        f"from {result.n_fit:,} others."
    )
    columns = [
        Column("cuts", "cuts"),
        Column("F1 [95 %]", "f1", "number", ("low", "high")),
        Column("gain [95 %]", "gain", "number", ("gain_low", "gain_high"), True),
    ]
    return caption, columns, result.frame(), "ways to cut"


def _regulators(result: Any) -> Parts:
    caption = (
        f"Confidence diagnostics{about(result)}. null space: share of the output weight in the "
        f"{result.k:,} last singular directions of the unembedding; frequency: cosine with the "
        f"frequency direction; r: with {result.metric} on the task, and with "
        f"{result.neutral_metric} on {result.n_texts:,} neutral texts; q: of the effect, among "
        f"{result.n_controls:,} random neurons of the layer; norm: the share of the effect that "
        f"goes through the final norm's scale. {BY_GROUP}"
    )
    columns = [
        Column("neuron", "name"),
        Column("word", "word"),
        Column("null space", "null_share", "number"),
        Column("frequency", "frequency", "number", signed=True),
        Column("r [95 %]", "r_task", "number", ("r_task_low", "r_task_high"), True),
        Column(
            "r, neutral [95 %]", "r_neutral", "number", ("r_neutral_low", "r_neutral_high"), True
        ),
        Column("q", "q_task", "p"),
        Column("norm [95 %]", "mediated", "number", ("mediated_low", "mediated_high")),
    ]
    return caption, columns, result.frame(), "neurons"


def _probe(result: Any) -> Parts:
    caption = (
        f"Probes for {result.metric} on the k first neurons{about(result, on=False)}: "
        f"{result.word}, "
        f"by the shortest description. Trained on {result.n_train:,}, tested on {result.n_test:,} "
        f"examples in {result.n_groups:,} other groups. random: on k random neurons; control: on "
        f"random labels; description: of the training labels and the neurons. {BY_GROUP}"
    )
    ends = ("balanced_accuracy_low", "balanced_accuracy_high")
    columns = [
        Column("k", "k", "count"),
        Column("balanced accuracy [95 %]", "balanced_accuracy", "number", ends),
        Column("random", "random", "number"),
        Column("control", "control", "number"),
        Column("description (bits)", "description", "number"),
    ]
    return caption, columns, result.frame(), "sizes"


def _minimal_set(result: Any) -> Parts:
    caption = (
        f"The fewest neurons that tell {result.metric} about as well as all, margin "
        f"{result.margin:g}{about(result, on=False)}: {result.word}. k is chosen by "
        f"cross-validation on {result.n_train:,} examples, its interval by drawing their groups "
        f"anew; accuracies are of {result.n_test:,} examples in {result.n_groups:,} other groups. "
        f"random: mean of {result.n_random} sets of k; difference: from that mean. {BY_GROUP}"
    )
    columns = [
        Column("neurons from", "scope"),
        Column("k [95 %]", "k", "count", ("k_low", "k_high")),
        Column("share [95 %]", "share", "number", ("share_low", "share_high")),
        Column("balanced accuracy [95 %]", "accuracy", "number", ("low", "high")),
        Column("all", "all", "number"),
        Column("random", "random", "number"),
        Column("difference [95 %]", "difference", "number",
               ("difference_low", "difference_high")),
    ]  # fmt: skip
    return caption, columns, result.frame(), "scopes"


def _explanations(result: Any) -> Parts:
    rows = [
        dict(one.best or {"feature": one.note or None}) | {"name": one.name}
        for one in result.neurons
    ]
    caption = (
        f"The feature that drives each neuron most{about(result, on=False)}: chosen on "
        f"{result.n_fitted:,} examples, measured on {result.n_held:,} in {result.n_groups:,} other "
        "groups. variance explained: of the activation; p: family-wise over the neuron's features; "
        f"stands for: the label or metric that the feature says by another name. {BY_GROUP}"
    )
    columns = [
        Column("neuron", "name"),
        Column("feature", "feature"),
        Column("variance explained (%) [95 %]", "variance_explained", "share", ENDS),
        Column("p", "p", "p"),
        Column("stands for", "stands_for"),
    ]
    told = result.descriptions
    if len(told):
        words = {row["name"]: row for row in told.to_dict("records")}
        for row in rows:
            own = words.get(row["name"], {})
            row |= {f"word_{name}": own.get(name) for name in ("low", "high", "auroc", "p")}
            row["sentence"] = own.get("sentence") or own.get("note")
        caption += (
            " sentence: made of the first half of the groups; AUROC: of the activation between the "
            f"judge's yes and no on {len(result.answers):,} texts of the other; p of the sentence: "
            "the larger rank among other neurons' sentences on this neuron and this sentence on "
            "other neurons."
        )
        columns += [
            Column("sentence", "sentence"),
            Column("AUROC [95 %]", "word_auroc", "number", ("word_low", "word_high")),
            Column("p of the sentence", "word_p", "p"),
        ]
    return caption, columns, rows, "neurons"


def _shortcuts(result: Any) -> Parts:
    caption = (
        f"What is behind neurons that are strong for {result.metric}{about(result, on=False)}"
        f"{', alone and the neurons of one feature together' if result.sets else ''}. "
        f"difference: of the effect of {result.do} on {result.causal_metric}, where the condition "
        f"holds minus elsewhere; {result.n_groups:,} groups. explained: of the held-out variance. "
        f"{BY_GROUP}"
    )
    columns = [
        Column("neuron or set" if result.sets else "neuron", "name"),
        Column("word", "word"),
        Column("condition", "condition"),
        Column("explained (%)", "explained", "share"),
        Column(with_unit("difference", result.unit), "value", "number", ENDS, True),
        Column("q", "q", "p"),
    ]
    order = "neurons, the largest r first" + (", then sets" if result.sets else "")
    return caption, columns, result.frame(), order


def _examples(result: Any) -> Parts:
    rows = []
    for one in result.neurons:
        ends = {"low": one.quantiles[-1].low, "high": one.quantiles[0].high}
        first = one.writes[0] if one.writes else None
        tokens = {
            "promoted": None if first is None else _listed(first.promoted),
            "suppressed": None if first is None else _listed(first.suppressed),
        }
        rows.append({"name": one.name} | ends | tokens)
    lens = next((f" by the {one.writes[0].lens} lens" for one in result.neurons if one.writes), "")
    caption = (
        f"Activations of neurons on {len(result.examples):,} examples{about(result)}, and the "
        f"tokens each makes most and least likely{lens}."
    )
    columns = [
        Column("neuron", "name"),
        Column("lowest", "low", "number", signed=True),
        Column("highest", "high", "number", signed=True),
        Column("promotes", "promoted"),
        Column("suppresses", "suppressed"),
    ]
    return caption, columns, rows, "neurons"


def _listed(tokens: Sequence[tuple[str, float]]) -> str:
    return " ".join(f"⟨{text}⟩" for text, _ in tokens[:5])


def _token_logits(result: Any) -> Parts:
    caption = f"Tokens that {result.name} makes more and less likely: {result.how}."
    columns = [
        Column("token", "token"),
        Column("direction", "direction"),
        Column("logit", "logit", "number", signed=True),
    ]
    rows = result.frame().assign(token=[f"⟨{text}⟩" for text in result.frame()["token"]])
    return caption, columns, rows, "tokens"


def _partial_scores(result: Any) -> Parts:
    caption = (
        f"Sums over {result.n_read:,} of {len(result.read):,} examples{about(result)}, to which "
        "those over the others are added."
    )
    columns = [
        Column("metric", "metric"),
        Column("examples", "examples", "count"),
        Column("read from", "source"),
    ]
    rows = [
        {
            "metric": name,
            "examples": result.n_read,
            "source": "the task" if name in result.known else "the model",
        }
        for name in result.metrics
    ]
    return caption, columns, pd.DataFrame(rows), "metrics"


def _graded(result: Any) -> Parts:
    caption = (
        f"Grades of {len(result):,} written texts{about(result)}: mean over the graders, where "
        "the "
        "skill was asked for and where it was not."
    )
    columns = [
        Column("skill", "skill"),
        Column("graded", "graded", "count"),
        Column("missing", "missing", "count"),
        Column("mean, asked", "mean_asked", "number"),
        Column("mean, not asked", "mean_not_asked", "number"),
    ]
    return caption, columns, result.summary(), "skills"


def _prompts(result: Any) -> Parts:
    caption = f"Every way of asking, on the same examples{about(result)}. {BY_GROUP}"
    columns = [
        Column("prompt", "prompt"),
        Column("metric", "metric"),
        Column("mean [95 %]", "mean", "number", ENDS),
        Column("examples", "n_examples", "count"),
        Column("groups", "n_groups", "count"),
    ]
    return caption, columns, result.frame(), "ways and metrics"


def _soft_prompt(result: Any) -> Parts:
    caption = (
        f"Training of a soft prompt{about(result)}: mean negative log-likelihood of the answer's "
        "tokens, in nats, and accuracy on held-out examples."
    )
    columns = [
        Column("step", "step", "count"),
        Column("train loss (nats)", "train_loss", "number"),
        Column("held-out loss (nats)", "held_out_loss", "number"),
        Column("held-out accuracy (%)", "held_out_accuracy", "share"),
    ]
    return caption, columns, result.frame(), "steps"


def _preflight(result: Any) -> Parts:
    caption = (
        f"What {result.task} is to {result.model}: {size_of(result)}. In brackets: exact 95 % "
        "intervals "
        "over groups."
    )
    columns = [
        Column("outcome", "name"),
        Column("rate (%) [95 %]", "rate", "share", ENDS),
        Column("chance (%)", "chance", "share"),
        Column("chance rule", "rule"),
        Column("above chance", "above_chance"),
    ]
    return caption, columns, result.frame(), "outcomes"


def _fine_tuned(result: Any) -> Parts:
    what = f"{len(result.neurons):,} neurons" if len(result.neurons) else "all parameters"
    n_train, n_held = result.n_examples
    caption = (
        f"Fine-tuning of {what} ({result.n_trained:,} of {result.n_weights:,} weights)"
        f"{about(result, on=False)}: mean negative log-likelihood of the answer, in nats, and "
        f"accuracy on {n_held:,} held-out examples; {n_train:,} to learn from."
    )
    columns = [
        Column("epoch", "epoch", "count"),
        Column("train loss (nats)", "train_loss", "number"),
        Column("held-out loss (nats)", "held_out_loss", "number"),
        Column("held-out accuracy (%)", "held_out_accuracy", "share"),
    ]
    return caption, columns, result.frame(), "epochs"


def _continual(result: Any) -> Parts:
    caption = (
        f"{', '.join(result.tasks)} learned in turn by {result.provenance['model']}: accuracy "
        "after the last task, right after each, and what was forgotten in between; "
        f"{len(result.seeds)} seeds, masks of {result.n_neurons:,} neurons. In brackets: 95 % "
        "intervals over seeds (Student's t)."
    )
    table = result.summary().set_index(["mask", "measure"])
    names = {"final": "final", "learned": "right after", "forgetting": "forgotten"}
    rows = [
        {"mask": mask}
        | {
            f"{name}{end}": table.loc[(mask, name), column]
            for name in names
            for end, column in (("", "mean"), ("_low", "low"), ("_high", "high"))
        }
        for mask in result.masks
    ]
    columns = [
        Column("mask", "mask"),
        *(
            Column(f"{words} (%) [95 %]", name, "share", (f"{name}_low", f"{name}_high"))
            for name, words in names.items()
        ),
    ]
    return caption, columns, pd.DataFrame(rows), "masks"


def _pseudo_labels(result: Any) -> Parts:
    caption = (
        f"Labels of {result.label} from the model's own confident answers{about(result)}: "
        f"{result.n_saved:,} of {len(result.ids):,} texts by {result.n_labelled} labelled "
        f"examples; confident answers are right in {100 * result.accuracy:.0f} % "
        f"[{100 * result.low:.0f}, {100 * result.high:.0f}] of {result.n_confident} of these "
        f"(chance {100 * result.chance:.0f} %)."
    )
    columns = [
        Column("text", "id"),
        Column("answer", "answer"),
        Column("confidence", "confidence", "number"),
        Column("kept", "kept"),
    ]
    return caption, columns, result.frame(), "texts"


def _rationales(result: Any) -> Parts:
    caption = (
        f"The smallest span of each prompt whose corruption ({result.corruption}) flips the "
        f"answer{about(result)}, up to {result.longest} tokens"
    )
    columns = [
        Column("example", "id"),
        Column("margin (nats)", "margin", "number"),
        Column("rationale", "text"),
        Column("tokens", "length", "count"),
        Column("margin, corrupted", "corrupted_margin", "number"),
    ]
    if result.neurons:
        caption += (
            f"; {result.do} of {len(result.neurons):,} neurons moves the margin "
            f"{result.ratio:.2g} [{result.low:.2g}, {result.high:.2g}] times as far there as at "
            "matched tokens"
        )
        columns += [
            Column("effect (nats)", "effect", "number"),
            Column("at matched tokens", "matched_effect", "number"),
        ]
    return f"{caption}.", columns, result.frame(), "examples"


CHECKS: Mapping[str, Callable[[Any], Parts]] = {
    "ActivatingExamples": _examples,
    "Continual": _continual,
    "Dissection": _dissection,
    "Explanations": _explanations,
    "FineTuned": _fine_tuned,
    "Graded": _graded,
    "Memorisation": _memorisation,
    "PartialScores": _partial_scores,
    "Preflight": _preflight,
    "PromptComparison": _prompts,
    "PseudoLabels": _pseudo_labels,
    "Rationales": _rationales,
    "Redundancy": _redundancy,
    "Regulators": _regulators,
    "Segmentation": _segmentation,
    "Shortcuts": _shortcuts,
    "SoftPrompt": _soft_prompt,
    "MinimalSet": _minimal_set,
    "SparseProbe": _probe,
    "TokenLogits": _token_logits,
}
"""By the kind of the result."""
