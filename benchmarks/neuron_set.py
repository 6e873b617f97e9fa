"""A published set on every form of its model, and on models whose weights were changed.

    make demo
    python benchmarks/neuron_set.py            # SmolLM2, some minutes on one thread
    python benchmarks/neuron_set.py --quick    # arithmetic-small: a smoke run, not a measurement

The neurons are those of the demo's study of agreement (quick: of a small one of arithmetic), as
`lens-skills publish` writes them from its folder. Each form of the model is read as
`NeuronSet.check` reads it: the largest distance of a layer as a share of its size, the distance of
next-token log-probabilities in nats, and whether the check passes. Then the middle layer's input
matrix gets noise of a share of its standard deviation, or one column of it (a neuron's input, not
of the set) is scaled, and the same is asked in float32 and in bfloat16. At last the set is put on
trial from the file alone, on the other implementation and on examples that neither the search nor
the verdict saw.
"""

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills.cli import app
from lens_skills.models import as_adapter
from lens_skills.publishing.probe import compare, rows_of, take

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOISE = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
SCALES = (1.0, 1e-1, 1e-2, 1e-3)
TRIED = 64  # examples


def published(quick: bool, demo: Path, folder: Path) -> tuple[Any, Any]:
    """The model, and the demo's set as somebody else opens it."""
    model = ls.load_model("arithmetic-small" if quick else None, implementation="hooked")
    if quick:
        task, demo = ls.tasks.arithmetic("+-", digits=2, n=120), folder / "demo"
        found = ls.study(
            model, task, metric="label:op", controls=ls.controls(sets=20, neurons=40),
            n_permutations=50, n_intervene=16, most=4,
        )  # fmt: skip
        found.save(demo / "agreement" / "study")
    typed = ["publish", demo / "agreement", "--licence", "CC-BY-4.0", "--out", folder / "set"]
    with contextlib.suppress(SystemExit):
        app.app([str(word) for word in typed])
    return model, ls.NeuronSet.load(folder / "set")


def asked(theirs: Any, model: Any) -> dict[str, float]:
    """How far a model is from the set's, and whether it passes."""
    probe = theirs._probe
    here = take(as_adapter(model), theirs.units, rows_of(probe), probe.top)
    apart = compare(probe, here, [unit.stop - unit.start for unit in theirs.units])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs.check(model)
            passes = 1.0
        except ls.LensSkillsError as error:
            print(f"    {error}")
            passes = 0.0
    return {"activations": apart.worst, "nats": apart.log_probability, "passes": passes}


def forms(theirs: Any, name: str | None) -> dict[str, float]:
    """Both implementations in three dtypes, the bridge also folded."""
    figures: dict[str, float] = {}
    for implementation in ("hooked", "bridge"):
        for dtype, number in DTYPES.items():
            model = ls.load_model(name, implementation=implementation, dtype=number)
            ways = [f"{implementation}_{dtype}"]
            if implementation == "bridge":
                ways.append(f"folded_{dtype}")
            for way in ways:
                if way.startswith("folded"):
                    model.enable_compatibility_mode()
                found = asked(theirs, model)
                shown(way, found)
                figures |= {f"{way}_{key}": value for key, value in found.items()}
    return figures


def changed(theirs: Any, model: Any) -> dict[str, float]:
    """Noise on one matrix, and one neuron's input scaled, in two dtypes."""
    layer = model.cfg.n_layers // 2
    matrix = model.blocks[layer].mlp.W_in
    own = {unit.start for unit in theirs.units if unit.layer == layer}
    neuron = next(index for index in range(100, matrix.shape[1]) if index not in own)
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
    figures: dict[str, float] = {}

    def ask(way: str, change: Callable[[Any], None]) -> None:
        kept = matrix.detach().clone()
        with torch.no_grad():
            change(matrix)
        for dtype in ("float32", "bfloat16"):
            other = model if dtype == "float32" else copy.deepcopy(model).to(DTYPES[dtype])
            found = asked(theirs, other)
            shown(f"{way}, {dtype}", found)
            figures.update({f"{way}_{dtype}_{key}": value for key, value in found.items()})
        with torch.no_grad():
            matrix.copy_(kept)

    for place, share in enumerate(NOISE):
        ask(f"noise_{place}", lambda m, s=share: m.add_(s * m.std() * noise.to(m)))
    for place, share in enumerate(SCALES):
        ask(f"column_{place}", lambda m, s=share: m[:, neuron].mul_(1 + s))
    return figures


def trial(theirs: Any, name: str | None) -> dict[str, float]:
    """The set on trial on the bridge, from the file: how many words and signs are the same."""
    model = ls.load_model(name, implementation="bridge")
    unseen = {row["id"] for row in theirs.document["task"]["examples"] if not row["used"]}
    whole = theirs.task
    if unseen:
        whole = whole.where(lambda example: example.id in unseen)
    examples = ls.tasks.few(whole, TRIED)
    found = theirs.audit(
        model, examples, controls=ls.controls(sets=0, neurons=60), n_permutations=50,
        unrelated=False, pairs=False,
    )  # fmt: skip
    print(found)
    before = {row["name"]: row for row in theirs.document["components"]}
    rulings = [one for one in found.verdict.singles if before[one.name]["verdict"]]
    published = {one.name: before[one.name]["verdict"] for one in rulings}
    words = sum(published[one.name]["word"] == one.word for one in rulings)
    signs = sum(published[one.name]["effect"] * one.effect > 0 for one in rulings)
    clear = [one for one in rulings if published[one.name]["word"] in ("supports", "opposes")]
    again = sum(published[one.name]["word"] == one.word for one in clear)
    within = sum(
        published[one.name]["low"] <= one.high and one.low <= published[one.name]["high"]
        for one in rulings
    )
    r = {row["name"]: row["r"] for row in found.claims}
    agree = sum(before[one.name]["associations"][0]["r"] * r[one.name] > 0 for one in rulings)
    numbers = {"trial_n": len(rulings), "trial_words": words, "trial_signs": signs}
    numbers |= {"trial_r": agree, "trial_examples": len(found.verdict.effects.clean)}
    numbers |= {"trial_clear": len(clear), "trial_clear_again": again, "trial_overlap": within}
    return {key: float(value) for key, value in numbers.items()}


def shown(way: str, found: dict[str, float]) -> None:
    passes = "passes" if found["passes"] else "refused"
    table(way, {"activations": f"{found['activations']:.2g}", "nats": f"{found['nats']:.2g}",
                "": passes})  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, quick="arithmetic-small: a smoke run, not a measurement")
    parser.add_argument("--demo", type=Path, default=Path("figures/demo"), help="what demo wrote")
    options = parser.parse_args()
    ls.config(progress=False)
    torch.set_num_threads(1)
    name = "arithmetic-small" if options.quick else None

    def measured() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as place:
            model, theirs = published(options.quick, options.demo, Path(place))
            figures = {"components": float(len(theirs)), "layers": float(model.cfg.n_layers)}
            about = theirs.document["task"]
            figures |= {"examples": float(about["n_examples"]), "groups": float(about["n_groups"])}
            verdicts = [row["verdict"]["word"] for row in theirs.document["components"]
                        if row["verdict"]]  # fmt: skip
            figures |= {f"published_{word}": float(verdicts.count(word))
                        for word in ("supports", "opposes")}  # fmt: skip
            figures["published_tried"] = float(len(verdicts))
            figures |= changed(theirs, model)
            del model
            figures |= trial(theirs, name)
            figures |= forms(theirs, name)
            other = None if options.quick else "arithmetic-small"
            figures["other_model_passes"] = asked_other(theirs, other)
            return figures

    run_parts({"": measured}, options)


def asked_other(theirs: Any, name: str | None) -> float:
    """Whether a model of other sizes passes."""
    try:
        theirs.check(ls.load_model(name))
    except ls.LensSkillsError as error:
        print(f"    {error}")
        return 0.0
    return 1.0


if __name__ == "__main__":
    main()
