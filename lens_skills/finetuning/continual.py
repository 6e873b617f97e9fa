"""`continual`: tasks learned one after the other under masks, and what of each is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_skills.activations.locations import DEFAULT_SITE
from lens_skills.checkpoints import Checkpoint, resumable
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.finetuning.finetune import trained_units, weights_of
from lens_skills.finetuning.forgetting import Continual
from lens_skills.finetuning.masked_training import FineTuningPlan, loss_and_accuracy, train
from lens_skills.finetuning.task_neurons import MASKS, encoded, importance, mask_of, strongest
from lens_skills.models import Chat, ModelAdapter, with_soft_prompt
from lens_skills.models.identity import identity
from lens_skills.models.trainable import copied, put_weights
from lens_skills.progress import Progress
from lens_skills.results import examples_hash, numbers_hash, versions
from lens_skills.scoring.leakage import shared
from lens_skills.soft_prompts.training_batches import training_batches
from lens_skills.stats.set_overlap import compare_sets
from lens_skills.tasks import Task

DEFAULT_MASKS = ("full", "ncft", "w_ncft", "random", "top_r")


@dataclass(frozen=True, eq=False)
class _Parts:
    """One seed's division of a task: learned from, stopped by, measured on."""

    learned: Task
    held_out: Task
    test: Task


@resumable()
def continual(
    model: Any,
    tasks: Mapping[str, Sequence[Example]],
    *,
    masks: Sequence[str] | Mapping[str, Any] = DEFAULT_MASKS,
    share: float = 0.1,
    seeds: int = 5,
    seed: int = 0,
    epochs: int = 40,
    batch_size: int = 32,
    lr: float | Mapping[str, float] = 1e-3,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
    patience: int = 5,
    held_out: float = 0.15,
    test: float = 0.25,
    metric: Any = None,
    transfer: bool = True,
    chat: Chat = False,
    checkpoint: str | Path | None = None,
) -> Continual:
    """Tasks learned in turn under each mask, and the accuracy on all of them after each.

    For every seed the tasks are divided anew, in groups that stand on one side in all of them;
    for every mask a copy of the model learns task after task as `finetune` does, from the weights
    the task before has left. The masks:

    - ``"full"``: every parameter is trained.
    - ``"ncft"``: T(current) alone, the ``share`` of all MLP neurons with the largest mean
      |a · ∂L/∂a| on what the task teaches, in the model as it is before the task.
    - ``"w_ncft"``: T(current), each neuron's learning rate times its share of the current task:
      its importance now over that plus its importance to each earlier task (as it was before that
      one was learned), all as shares of all neurons'. On the first task it is ``"ncft"``.
    - ``"random"``: as many others in each of the same layers.
    - ``"top_r"``: as many with the largest |r| between activation at the last token and
      ``metric``, on what the task teaches, before it is learned.

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was, bit for bit.
        tasks: By name, in the order in which they are learned. No prompt stands in two of them.
        masks: Names of the above; or a mapping, in which a built-in name stands for None and any
            other for its neurons on each task: ``{"full": None, "mine": {"plus": …, "minus": …}}``.
        share: Of all MLP neurons, 0 to 1: how many the masks train.
        seeds: How many times, with seed, seed + 1, …: of the division, of the order of the
            examples, of the random neurons.
        seed: The first of them.
        epochs, batch_size, weight_decay, clip, patience: As in `finetune`, for every task.
        lr: As there; or one for each mask, by name: few weights take larger steps than all.
        held_out: Share of the examples that training stops by.
        test: Share of the examples on which accuracy is measured, and nothing else.
        metric: Of ``"top_r"``; None: ``logit_diff``, or ``answer_probability`` without foils.
        transfer: Also train every parameter on each task alone, and compare what that does to the
            others with the neurons they share.
        chat: As in `score`.
        checkpoint: A folder that keeps the work so far, about once a minute when a task is
            learned; the same call goes on there with the same numbers.

    Raises:
        LensSkillsError: Fewer than two tasks; tasks with prompts in common; a mask that is not
            there, that trains nothing, or that names no neurons for a task; a neuron that is not
            there; parts too small to hold any group; see `finetune`.

    Source: task-specific neurons and NCFT, W-NCFT: Leng & Xiong 2024 (arXiv 2407.06488). Their
    formula for the weights of W-NCFT is not attested here: ours is an analogue. Accuracy matrix,
    backward and forward transfer: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840); forgetting:
    Chaudhry et al. 2018 (arXiv 1801.10112).
    Does not show: what holds for another order of the tasks, other tasks or other models:
    intervals are over seeds alone, which share one model and one pool of examples.

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> tasks = {"plus": ls.tasks.arithmetic("+"), "minus": ls.tasks.arithmetic("-")}
    >>> found = ls.continual(model, tasks, masks=("full", "ncft"), seeds=1, epochs=1)
    >>> found.accuracy.shape  # mask, seed, after how many tasks, task
    torch.Size([2, 1, 3, 2])
    """
    given: Any = with_soft_prompt(model, None, chat)
    if given.soft is not None:
        raise LensSkillsError(f"{given.name} is read with a soft prompt; train a bare model.")
    if seeds < 1:
        raise LensSkillsError(f"seeds={seeds}: at least 1 is needed.")
    checked = _check_tasks(tasks)
    kinds = _check_masks(given, masks, tuple(checked))
    plans = {
        name: FineTuningPlan(epochs, batch_size, rate, weight_decay, clip, patience)
        for name, rate in _rates(lr, kinds, transfer).items()
    }
    k = _check_share(given, share)
    if held_out <= 0 or test <= 0 or held_out + test >= 1:
        raise LensSkillsError(
            f"held_out={held_out:g}, test={test:g}: both are above 0, and together below 1: what "
            "is left is learned from."
        )
    numbers = range(seed, seed + seeds)
    divided = {n: _divide(checked, held_out, test, n) for n in numbers}
    settings = {
        **{name: asdict(plan) for name, plan in plans.items()},
        "held_out": held_out,
        "test": test,
        "share": share,
    }
    about = {
        **identity(given),
        "implementation": given.implementation,
        "examples": {name: examples_hash(task) for name, task in checked.items()},
        "metric": str(getattr(metric, "name", metric)),
        "settings": settings,
        "versions": versions(),
    }
    asked = {
        **{name: about[name] for name in ("model_fingerprint", "implementation", "examples")},
        **{"metric": about["metric"], "settings": settings, "transfer": transfer},
        "seeds": list(numbers),
        "masks": {
            name: None
            if own is None
            else {task: _digest(given, units) for task, units in own.items()}
            for name, own in kinds.items()
        },
        **given.reading,
    }
    run = _Run(given, kinds, k, plans, metric, Checkpoint.at(asked, name="training"))
    alone = transfer and len(checked) > 1
    n_alone = len(checked) - ("full" in kinds) if alone else 0
    total = seeds * (len(kinds) * len(checked) + n_alone)
    with Progress(total, "continual", "trainings") as bar:
        run.bar = bar
        for n in numbers:
            run.base(n, divided[n])
            for name in kinds:
                run.sequence(n, name, divided[n])
            if alone:
                run.each_alone(n, divided[n])
    names, size = tuple(checked), len(checked)
    done = run.done
    matrix = [[done[f"{n}/{name}"] for n in numbers] for name in kinds]
    off = [[done[f"{n}/transfer"] for n in numbers]] if alone else [[]]
    return Continual(
        tasks=names,
        masks=tuple(kinds),
        seeds=tuple(numbers),
        accuracy=torch.tensor(matrix, dtype=torch.float64),
        n_neurons=k,
        n_trained=tuple(int(done[f"{numbers[0]}/{name}/trained"]) for name in kinds),
        jaccard=torch.tensor([done[f"{n}/jaccard"] for n in numbers], dtype=torch.float64),
        transfer=torch.tensor(off[0], dtype=torch.float64).reshape(-1, size, size),
        n_test=tuple(len(divided[numbers[0]][name].test) for name in names),
        n_learned=tuple(len(divided[numbers[0]][name].learned) for name in names),
        provenance=about,
    )


class _Run:
    """What is done so far, and how one piece more is done; every piece is kept by its name."""

    def __init__(
        self,
        given: ModelAdapter,
        kinds: Mapping[str, Mapping[str, Any] | None],
        k: int,
        plans: Mapping[str, FineTuningPlan],
        metric: Any,
        saved: Checkpoint | None,
    ) -> None:
        self.given, self.kinds, self.k, self.plans = given, kinds, k, plans
        self.metric, self.saved = metric, saved
        self.bar: Progress
        tensors, plain = (saved.read() if saved else None) or ({}, {})
        self.done: dict[str, Any] = dict(plain.get("done", {}))
        # Of the sequence that was interrupted: its name, its rows, the weights, the importances.
        self.open = str(plain.get("open", ""))
        self.rows: list[list[float]] = list(plain.get("rows", []))
        self.tensors = dict(tensors)

    def base(self, seed: int, parts: Mapping[str, _Parts]) -> None:
        """The accuracy before anything is learned, and the overlap of the tasks' neurons."""
        if f"{seed}/base" in self.done:
            return
        sets = []
        for part in parts.values():
            scores = importance(self.given, encoded(self.given, part.learned))
            sets.append([tuple(row) for row in strongest(scores, self.k).tolist()])
        widths = dict(enumerate(self.given.mlp_widths))
        self.done[f"{seed}/jaccard"] = [
            [compare_sets(one, other, widths).jaccard for other in sets] for one in sets
        ]
        self.done[f"{seed}/base"] = self.measured(self.given, parts)

    def sequence(self, seed: int, name: str, parts: Mapping[str, _Parts]) -> None:
        """All tasks in turn under one mask."""
        key = f"{seed}/{name}"
        if key in self.done:
            self.bar.skip(len(parts))
            return
        adapter = copied(self.given)
        rows, earlier = [self.done[f"{seed}/base"]], []
        if self.open == key:
            rows = self.rows
            put_weights(adapter, _under(self.tensors, "weights/"))
            kept = _under(self.tensors, "importance/")
            earlier = [kept[str(place)] for place in range(len(rows) - 1)]
            self.bar.skip(len(rows) - 1)
        for place, (task, part) in enumerate(parts.items()):
            if place < len(rows) - 1:
                continue
            scores = importance(adapter, encoded(adapter, part.learned))
            mask = mask_of(
                name, self.kinds[name], task, adapter, part.learned,
                scores=scores, earlier=earlier, k=self.k, metric=self.metric,
                seed=1000 * seed + place,
            )  # fmt: skip
            self.trained(adapter, mask.units, mask.rates, part, seed, name)
            earlier.append(scores)
            rows.append(self.measured(adapter, parts))
            self.open, self.rows = key, rows
            self.keep(adapter, earlier)
        self.done[key] = rows
        self.open = ""

    def each_alone(self, seed: int, parts: Mapping[str, _Parts]) -> None:
        """What every parameter trained on one task alone does to the accuracy on all."""
        key = f"{seed}/transfer"
        if key in self.done:
            self.bar.skip(len(parts) - ("full" in self.kinds))
            return
        base, found = self.done[f"{seed}/base"], []
        for place, part in enumerate(parts.values()):
            if place == 0 and "full" in self.kinds and self.kinds["full"] is None:
                after = self.done[f"{seed}/full"][1]
            else:
                adapter = copied(self.given)
                self.trained(adapter, None, None, part, seed, "full")
                after = self.measured(adapter, parts)
            found.append([new - old for new, old in zip(after, base, strict=True)])
        self.done[key] = found
        if self.saved is not None and self.saved.due():
            self.saved.write({}, {"done": self.done})

    def trained(
        self,
        adapter: ModelAdapter,
        units: Any,
        rates: Tensor | None,
        part: _Parts,
        seed: int,
        name: str,
    ) -> None:
        """One training under a mask, in place."""
        weights = weights_of(adapter, units)
        rows = encoded(adapter, [*part.learned, *part.held_out])
        cut = len(part.learned)
        train(adapter, weights, rows[:cut], rows[cut:], self.plans[name], seed=seed, rates=rates)
        self.done[f"{seed}/{name}/trained"] = sum(one.read().numel() for one in weights)
        self.bar.update()

    def measured(self, adapter: ModelAdapter, parts: Mapping[str, _Parts]) -> list[float]:
        """The accuracy on each task's test part."""
        return [
            loss_and_accuracy(adapter, training_batches(adapter, encoded(adapter, part.test), 64))[
                1
            ]
            for part in parts.values()
        ]

    def keep(self, adapter: ModelAdapter, earlier: Sequence[Tensor]) -> None:
        """Writes the checkpoint where the last is long ago."""
        if self.saved is None or not self.saved.due():
            return
        tensors = {
            f"weights/{name}": parameter.detach().contiguous()
            for name, parameter in adapter.model.named_parameters()
        }
        tensors |= {f"importance/{place}": scores for place, scores in enumerate(earlier)}
        self.saved.write(tensors, {"done": self.done, "open": self.open, "rows": self.rows})


def _under(tensors: Mapping[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {name.removeprefix(begin): t for name, t in tensors.items() if name.startswith(begin)}


def _digest(adapter: ModelAdapter, units: Any) -> str | None:
    rows = trained_units(adapter, units)
    return None if rows is None else numbers_hash(rows)


def _check_tasks(tasks: Mapping[str, Sequence[Example]]) -> dict[str, Task]:
    if len(tasks) < 2:
        raise LensSkillsError(
            f"{len(tasks)} tasks: what is forgotten shows when another is learned after it, so "
            'give two or more by name, in order: {"plus": …, "minus": …}. '
            "ls.finetune trains on one."
        )
    found = {}
    for name, examples in tasks.items():
        task = examples if isinstance(examples, Task) else Task(str(name), examples)
        for example in task:
            if example.answer is None:
                raise LensSkillsError(
                    f"example {example.id!r} of {name!r} has no answer: nothing can be learned."
                )
        found[str(name)] = task
    prompts = {name: field_of(task, "prompt") for name, task in found.items()}
    names = list(prompts)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            if what := shared(prompts[one], (), prompts[other]):
                both = next(iter(set(prompts[one]) & set(prompts[other])))
                raise LensSkillsError(
                    f"the tasks {one!r} and {other!r} share {what} ({both!r:.60}): what is learned "
                    "from one is then measured on the other. Give tasks without a prompt in common."
                )
    return found


def _check_masks(
    adapter: ModelAdapter, masks: Any, tasks: Sequence[str]
) -> dict[str, Mapping[str, Any] | None]:
    if isinstance(masks, str):
        masks = [masks]
    given = dict(masks) if isinstance(masks, Mapping) else dict.fromkeys(masks)
    if not given:
        raise LensSkillsError(f"no masks: name some of {', '.join(MASKS)}, or give your own.")
    for name, own in given.items():
        if own is None and name not in MASKS:
            raise LensSkillsError(
                f"no mask {name!r}. Choose {', '.join(MASKS)}, or give its neurons for each task: "
                f"masks={{{name!r}: {{{tasks[0]!r}: …}}}}."
            )
        if own is None:
            continue
        if not isinstance(own, Mapping) or set(own) != set(tasks):
            said = sorted(own) if isinstance(own, Mapping) else f"{own!r:.40}"
            raise LensSkillsError(
                f"the mask {name!r} needs neurons for each task, {', '.join(tasks)}; it has {said}."
            )
        for units in own.values():
            trained_units(adapter, units)
    return {str(name): own for name, own in given.items()}


def _rates(
    lr: float | Mapping[str, float], kinds: Mapping[str, Any], transfer: bool
) -> dict[str, float]:
    names = [*kinds, *(["full"] if transfer and "full" not in kinds else [])]
    if not isinstance(lr, Mapping):
        return dict.fromkeys(names, lr)
    missing, unknown = [n for n in names if n not in lr], [n for n in lr if n not in names]
    if missing or unknown:
        raise LensSkillsError(
            f"lr has no learning rate for {missing[0]!r}: give one for each of {', '.join(names)}."
            if missing
            else f"lr names {unknown[0]!r}, which is no mask here: {', '.join(names)}."
        )
    return {name: lr[name] for name in names}


def _check_share(adapter: ModelAdapter, share: float) -> int:
    adapter.check_site(DEFAULT_SITE)
    total = sum(adapter.mlp_widths)
    k = round(share * total)
    if not 0 < share <= 1 or k < 1:
        raise LensSkillsError(
            f"share={share:g} of {total:,} neurons is {max(k, 0)}: the mask trains nothing. Give a "
            "share above 0 and at most 1, such as 0.1."
        )
    return k


def _divide(
    tasks: Mapping[str, Task], held_out: float, test: float, seed: int
) -> dict[str, _Parts]:
    """The parts of each task; a group stands on the same side in all of them."""
    groups = sorted({group for task in tasks.values() for group in task.groups})
    pool = Task("groups", [Example(id=group, prompt="x", group=group) for group in groups])
    names = ("learned", "held-out", "test")
    parts = pool.split(1 - held_out - test, held_out, test, seed=seed, names=names)
    side = {e.group: place for place, part in enumerate(parts) for e in part}
    found = {}
    for name, task in tasks.items():
        own = [[e for e in task if side[e.group] == place] for place in range(3)]
        if not all(own):
            raise LensSkillsError(
                f"the task {name!r} has {len(task.groups)} groups, too few for a part to learn "
                f"from, one to stop by ({held_out:g}) and one to measure on ({test:g})."
            )
        found[name] = _Parts(
            *(Task(task.name, rows, word) for rows, word in zip(own, names, strict=True))
        )
    return found
