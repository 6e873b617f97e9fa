"""`labelled_task`: graded texts as a Task whose labels are the grades."""

from collections.abc import Sequence

from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.generation.graded import CONFIDENCE, Graded
from lens_skills.tasks import Task


def labelled_task(graded: Graded, skills: Sequence[str], written: bool) -> Task:
    """The examples with their grades as labels; see `Graded.task`."""
    grades = graded.grades
    if unknown := [skill for skill in skills if skill not in grades]:
        raise LensSkillsError(
            f"no grades of {unknown[0]!r}. Graded: {', '.join(grades) or 'nothing yet'}."
        )
    about = graded.provenance
    if written and (about.get("chat") or about.get("prompt")):
        what = "a chat template" if about.get("chat") else "a soft prompt"
        raise LensSkillsError(
            f"these texts were written after {what}, which stands between prompt and text and "
            "cannot be put into a prompt. Read them with capture_text(model, graded, path)."
        )
    chosen = {skill: grades[skill].tolist() for skill in skills or grades}
    kept = [
        _example(graded, place, {skill: v[place] for skill, v in chosen.items()}, written)
        for place in range(len(graded))
        if all(v[place] == v[place] for v in chosen.values())
        and not (written and not graded.texts[place].strip())
    ]
    if not kept:
        raise LensSkillsError(
            f"no text has a grade of each of {', '.join(chosen)}. Ask for fewer at a time: "
            f"graded.task({next(iter(chosen), '')!r})."
        )
    form = " with their texts" if written else ""
    lost = len(graded) - len(kept)
    split = f"{about.get('split', 'all')}{form}{f', {lost} left out' if lost else ''}"
    return Task(graded.name, kept, split)


def _example(graded: Graded, place: int, grades: dict[str, float], written: bool) -> Example:
    example, text = graded.examples[place], graded.texts[place]
    covariates = {
        **example.covariates,
        **{f"asked {name}": value for name, value in example.labels.items()},
        "text": text,
        "n_tokens": len(graded.tokens[place]),
        "copied": graded.copied[place],
        "ended": int(graded.ended[place]),
        **{name: float(getattr(graded, name)[place]) for name in CONFIDENCE},
    }
    return Example(
        id=example.id,
        prompt=example.prompt + text if written else example.prompt,
        labels=grades,
        covariates=covariates,
        group=example.group,
        kind=example.kind,
    )
