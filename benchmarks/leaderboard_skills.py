"""Whose neurons are causes of a skill, and of that skill only: methods of ranking on many tasks.

    python benchmarks/leaderboard_skills.py --data FOLDER                     # SmolLM2-135M
    python benchmarks/leaderboard_skills.py --model arithmetic-small
    python benchmarks/leaderboard_skills.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --data FOLDER
    python benchmarks/leaderboard_skills.py --page                            # from what is kept

On each task every method ranks all neurons on one split; the strongest of each are mean-ablated one
by one on another; the causal hits among them also on two other tasks and on neutral text. A
screened sweep is the oracle of recall. Each task's result is kept in ``runs/leaderboard``, so that
tasks can be run in separate commands (``--tasks``); ``--page`` writes
``figures/leaderboard_skills`` from all that is kept.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skill_tasks
from asked_model import add_model, opened, slug
from leaderboard_skills_page import write_page

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.activations.forward import encode_examples
from lens_skills.models import as_adapter
from lens_skills.ranking import METHODS, compare_methods
from lens_skills.stats.effect_tests import cluster_interval
from lens_skills.tasks import Task

RUNS, OUT = Path("runs/leaderboard"), Path("figures/leaderboard_skills")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    add_model(parser)
    parser.add_argument("--data", type=Path, help="folder of agreement_pairs and greater_than")
    parser.add_argument("--tasks", nargs="*", help="names (default: all of the model's)")
    parser.add_argument("--k", type=int, default=50, help="neurons each method may name")
    parser.add_argument("--explore", type=int, default=40, help="examples to rank on")
    parser.add_argument("--intervene", type=int, default=24, help="examples to ablate neurons on")
    parser.add_argument("--controls", type=int, default=24, help="random neurons of each layer")
    parser.add_argument("--screen", type=float, default=0.006, help="share the oracle measures")
    parser.add_argument(
        "--leave-out", nargs="*", default=["relevance"], help="methods that are not tried"
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="where results are kept")
    parser.add_argument("--out", type=Path, default=OUT, help="where the page goes")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--quick", action="store_true", help="two tasks, few neurons")
    asked = parser.parse_args(given)
    if asked.quick:
        asked.k, asked.explore, asked.intervene, asked.screen = 4, 24, 12, 0.02
    return asked


def catalogue(model: str | None) -> Mapping[str, Callable[[Path | None], Task]]:
    """The tasks of a model, in the order in which they are one another's contrasts."""
    return skill_tasks.ARITHMETIC if model == "arithmetic-small" else skill_tasks.TASKS


def single_tokens(model: Any, task: Task) -> Task:
    """Examples whose answer and foil are one token each: an effect on them costs a fraction."""
    encoded = encode_examples(as_adapter(model), task, answers=True)
    short = {
        item.id
        for item in encoded
        if len(item.answer_tokens or ()) == 1 == len(item.foil_tokens or ())
    }
    return task.where(lambda example: example.id in short)


def splits(task: Task, n_explore: int, n_intervene: int) -> tuple[Task, Task]:
    """Examples to rank on, spread over the groups, and one example of each group of the rest."""
    explore, rest = task.split(0.5, 0.5, seed=0)

    def spread(part: Task, n: int, seed: int, *, once: bool) -> Task:
        seen: dict[str, int] = {}
        turns = []
        for place in np.random.default_rng(seed).permutation(len(part)).tolist():
            group = part[place].group
            turns.append((seen.setdefault(group, 0), len(turns), part[place].id))
            seen[group] += 1
        kept = [entry for entry in sorted(turns) if not once or entry[0] == 0][:n]
        ids = {name for _, _, name in kept}
        return part.where(lambda example: example.id in ids)

    return spread(explore, n_explore, 0, once=False), spread(rest, n_intervene, 1, once=True)


def skill_of(model: Any, task: Task) -> tuple[bool, str]:
    """Whether the model prefers the answers to their foils, and the sentence."""
    values = evaluate(model, task, ["logit_diff"])["logit_diff"].double()
    low, high = (float(end) for end in cluster_interval(values, [e.group for e in task]))
    right = float((values > 0).double().mean())
    said = (
        f"logit difference {float(values.mean()):.2f} [{low:.2f}, {high:.2f}], the answer before "
        f"the foil in {right:.0%} of {len(task)}"
    )
    return low > 0 and right > 0.6, said


def contrasts_of(name: str, names: list[str], n: int = 2) -> list[str]:
    """The tasks after this one in the list that are of another skill; round and round."""
    place = names.index(name)
    others = names[place + 1 :] + names[:place]
    return [one for one in others if not skill_tasks.related(name, one)][:n]


def run(name: str, model: Any, asked: argparse.Namespace) -> None:
    """One task, kept in its folder; one that the model cannot do is kept as a sentence."""
    folder = asked.runs / slug(asked.model) / name
    if (folder / "about.json").exists():
        print(f"{name}: kept", flush=True)
        return
    began, tasks = time.process_time(), catalogue(asked.model)
    whole = asked.model != "arithmetic-small"

    def made(one: str) -> tuple[Task, Task]:
        task = tasks[one](asked.data)
        return splits(single_tokens(model, task) if whole else task, asked.explore, asked.intervene)

    explore, intervene = made(name)
    able, said = skill_of(model, intervene)
    about: dict[str, Any] = {"task": name, "skill": able, "said": said}
    if able:
        contrast = {}
        for other in contrasts_of(name, list(tasks), n=4):
            if len(contrast) < (1 if asked.quick else 2):
                ranked, tried = made(other)
                if skill_of(model, tried)[0]:
                    contrast[other] = Task(other, [*ranked, *tried][: 2 * asked.intervene])
        metric = skill_tasks.METRICS.get(name, "logit_diff")
        comparison = compare_methods(
            model,
            explore,
            metric,
            intervene=intervene,
            split="median" if metric == "logit_diff" else None,
            methods=[
                method
                for method, each in METHODS.items()
                if not each.takes_long and method not in asked.leave_out
            ],
            k=asked.k,
            n_random=1,
            controls=ls.controls(neurons=asked.controls),
            exhaustive=False,
            contrast=contrast,
        )
        compared = time.process_time() - began
        edit = ls.ablate("mean", over=explore)
        oracle = ls.sweep(
            model, intervene, do=edit, metric="logit_diff", screen=asked.screen, drawn=0.001
        )
        comparison.save(folder / "comparison")
        oracle.frame().to_csv(folder / "oracle.csv", index=False)
        about |= {
            "metric": comparison.metric,
            "contrasts": list(contrast),
            "clean": float(oracle.clean.mean()),
            "n_explore": len(explore),
            "n_intervene": len(intervene),
            "n_groups": comparison.n_groups,
            "compare_seconds": compared,
        }
    about["minutes"] = (time.process_time() - began) / 60
    about |= {"k": asked.k, "controls": asked.controls, "screen": asked.screen, "seed": 0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    print(f"{name}: {said}; {about['minutes']:.1f} min of processor time", flush=True)


def main(asked: argparse.Namespace) -> pd.DataFrame | None:
    """Runs the tasks that are not kept yet, then writes the page."""
    ls.config(progress=False)
    if not asked.page:
        names = asked.tasks or list(catalogue(asked.model))[: 2 if asked.quick else None]
        model = opened(asked.model)
        for name in names:
            run(name, model, asked)
    if asked.page or asked.quick:
        return write_page(asked.runs, asked.out)
    return None


if __name__ == "__main__":
    main(arguments())
