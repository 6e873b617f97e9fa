"""`case_of`: all that speaks for and against one neuron being a shortcut."""

from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.explanation.condition import Condition
from lens_skills.explanation.explanation import Explanation
from lens_skills.explanation.findings import ALPHA
from lens_skills.explanation.shortcut import Effect, Shortcut, ruling
from lens_skills.tasks import Task

_RIVAL = 0.8  # a surface feature explains a neuron only where no other explains much more


def tied_to(one: Explanation, least: float) -> str | None:
    """The surface feature that explains a neuron; None where none does, or another does better.

    It is the best of the surface features on the fitted half; held out it explains at least
    ``least`` of the variance with p <= 0.05; and on the fitted half, no feature that defines the
    task explains so much that this one explains less than 80 % of it.
    """
    surface = [row for row in one.rows if row["surface"]]
    if not surface:
        return None
    row, best = surface[0], one.rows[0]
    beyond_chance = row["p"] is None or row["p"] <= ALPHA
    rivals = row["explained_fitted"] >= _RIVAL * best["explained_fitted"]
    return (
        row["feature"] if beyond_chance and rivals and row["variance_explained"] >= least else None
    )


def case_of(
    one: Explanation,
    tied: str | None,
    *,
    r: float,
    condition: Condition | None,
    splits: tuple[Task, Task],
    right: list[Tensor | None],
    part: Bool[Tensor, " example"] | None,
    total: Float[Tensor, " example"],
    difference: Effect | None,
    effect: Effect,
    n_controls: int,
) -> Shortcut:
    """Everything known of one neuron, and the word for it."""
    rival = next((row for row in one.rows if not row["surface"]), None)
    row = one.feature(tied) if tied else None
    raises, inside, outside = False, None, None
    counts: list[int | None] = [None] * 4
    if condition is not None and part is not None:
        present = condition.of(splits[0])
        shift = one.activation[present].mean() - one.activation[~present].mean()
        raises = bool(r * float(shift) > 0)
        if difference is not None:
            inside, outside = float(total[part].mean()), float(total[~part].mean())
        # What the knock-out takes from the metric, the neuron gave it.
        moved = part & ((total < 0) if raises else (total > 0))
        for place, (correct, chosen) in enumerate(
            zip(right, (condition.of(splits[1]), moved), strict=True)
        ):
            if correct is not None:
                counts[2 * place] = int((chosen & correct).sum())
                counts[2 * place + 1] = int((chosen & ~correct).sum())
    larger = inside is not None and outside is not None and abs(inside) > abs(outside)
    word, reason = ruling(condition is not None, difference, effect, larger)
    return Shortcut(
        name=one.name,
        word=word,
        why=reason,
        r=r,
        feature=tied or "",
        condition="" if condition is None else condition.words,
        explained=None if row is None else row["variance_explained"],
        p=None if row is None else row["p"],
        rival="" if rival is None else rival["feature"],
        rival_explained=None if rival is None else rival["variance_explained"],
        raises=raises,
        n_associated=0 if part is None else int(part.sum()),
        n_others=0 if part is None else int((~part).sum()),
        helps=counts[0],
        fools=counts[1],
        helped=counts[2],
        fooled=counts[3],
        difference=difference,
        effect=effect,
        associated=inside,
        others=outside,
        n_controls=n_controls,
    )
