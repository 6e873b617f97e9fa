"""Detectors on trial: neurons that tell right from wrong answers, and whether they are levers.

    python benchmarks/detectors.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct
    python benchmarks/detectors.py --model arithmetic-small --ops=+- --digits 2 3
    python benchmarks/detectors.py --quick --model arithmetic-small --ops=+- --digits 3 4

The model answers sums, differences and products by itself. Neurons are found by their contribution
(CETT) on the tokens of the answers, by the recipe of arXiv 2512.01797; then it is asked how well
they tell right from wrong in groups of operands that took no part, whether that carries over to
other operations and numbers of digits, and what happens when they are turned down and up.
Writes a page, its figure and its tables to figures/detectors; finished steps are kept in
runs/detectors, from which an interrupted run goes on.
"""

import argparse
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from asked_model import add_model, opened, slug
from detector_steps import (
    ALPHAS,
    FEWEST,
    Answers,
    Detected,
    NotKept,
    answer,
    detect,
    random_places,
    scaled,
    scaling_rows,
    transfer,
)
from detectors_page import write_page

import lens_skills as ls
from lens_skills.data import in_turns
from lens_skills.results import file_name
from lens_skills.tasks.word_lists import neutral_texts

OUT, RUNS = Path("figures/detectors"), Path("runs/detectors")
N_TRIED = 6
"""Neurons that get a verdict each, and one together."""


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    parser.add_argument("--quick", action="store_true", help="a smoke run: few examples, no result")
    parser.add_argument("--out", type=Path, default=OUT, help="where the page goes")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where finished steps are kept")
    parser.add_argument("--ops", default="+-*", help="operations")
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--n", type=int, default=300, help="problems")
    parser.add_argument("--levers", type=int, default=36, help="problems that neurons are tried on")
    parser.add_argument("--texts", type=int, default=12, help="neutral texts")
    parser.add_argument("--random", type=int, default=50, help="random sets beside the detection")
    parser.add_argument("--matched", type=int, default=5, help="matched sets beside the scaling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", help="a sentence for the page: why these problems")
    parser.add_argument("--kept", action="store_true", help="only write what finished steps say")
    given = parser.parse_args()
    if given.quick:
        given.n, given.levers, given.texts, given.random, given.matched = 120, 8, 2, 4, 1
        given.runs = given.runs / "quick"
    return given


class Kept:
    """Finished steps of one setting on disk, and the processor time that each took."""

    def __init__(self, folder: Path, only: bool) -> None:
        self.folder, self.only, self.seconds = folder, only, dict[str, float]()
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """What was kept under a name, or made and kept now."""
        path = self.folder / f"{name}.pkl"
        if not path.exists():
            if self.only:
                raise NotKept(name)
            print(f"{name} …", flush=True)
            start = time.process_time()
            made = make()
            seconds = time.process_time() - start
            part = path.with_suffix(".part")
            part.write_bytes(pickle.dumps((made, seconds)))
            part.replace(path)
        made, self.seconds[name] = pickle.loads(path.read_bytes())
        return made


def main() -> None:
    given = asked()
    ls.config(progress=False)
    settings = (given.ops, *given.digits, given.n, given.seed)
    name = file_name(slug(given.model), *map(str, settings))
    kept = Kept(given.runs / name, given.kept)
    task = ls.tasks.arithmetic(given.ops, digits=given.digits, n=given.n, seed=given.seed)
    train, test = task.split(0.6, 0.4, seed=given.seed)
    model = opened(given.model)
    found: Answers = kept("answers", lambda: answer(model, task))
    preflight = kept("preflight", lambda: repr(ls.preflight(model, train)))
    learn, held = found.rows(train), found.rows(test)
    about = {
        "given": given, "model": model.cfg.model_name, "preflight": preflight, "answers": found,
        "learn": learn, "held": held,
    }  # fmt: skip
    classes = [
        int((found.right[rows] == value).sum()) for rows in (learn, held) for value in (0, 1)
    ]
    if min(classes) < FEWEST:
        write_page(about, kept.seconds)
        return
    with suppress(NotKept):
        for _ in steps(model, task, kept, about):
            write_page(about, kept.seconds)


def steps(model: Any, task: ls.Task, kept: Kept, about: dict[str, Any]) -> Iterator[None]:
    """Puts what each step finds into ``about``, one after another."""
    given, found, learn, held = (about[name] for name in ("given", "answers", "learn", "held"))
    seed = given.seed
    detected: Detected = kept(
        "detection",
        lambda: detect(model, task, found, learn, held, n_random=given.random, seed=seed),
    )
    about["detected"] = detected
    yield
    detectors = detected.lists["H-neurons"]
    if len(detectors) == 0:
        return
    about["transfer"] = kept("transfer", lambda: transfer(found, learn, held, seed))
    yield
    width = found.own.width
    level = found.own.answer[torch.from_numpy(learn)].mean(0).double().numpy()
    sets = {"detectors": detectors}
    drawn = random_places(detectors, width, given.matched, seed, level)
    sets |= {f"random{place}": one for place, one in enumerate(drawn)}
    named = {key: [f"L{p // width}N{p % width}" for p in places] for key, places in sets.items()}
    test = [example for example in task if example.id in {found.ids[row] for row in held}]
    cell = dict(zip(found.ids, found.cells, strict=True))
    mixed = in_turns(in_turns(test, lambda e: cell[e.id]), lambda e: e.group)
    tried = ls.Task(task.name, mixed[: given.levers])
    about |= {"names": named["detectors"], "tried": tried}
    texts = neutral_texts()[: given.texts]
    with suppress(NotKept):
        about["verdict"] = kept(
            "verdict",
            lambda: ls.verify(
                model, tried, named["detectors"][:N_TRIED], do=ls.scale(by=0), also=(), by=(),
                pairs=False, seed=seed, n_draws=500 if given.quick else 2000,
                controls=ls.controls(sets=20, neurons=21 if given.quick else 30),
            ),
        )  # fmt: skip
        yield
    table = scaling_rows(scaled(model, tried, named, texts, ALPHAS, kept), seed)
    if len(table):
        about["scaling"] = table
    yield


if __name__ == "__main__":
    main()
