"""Skill-Mix: does a small model write what it is asked for, and which neurons know beforehand?

    python benchmarks/settings/skill_mix.py
    python benchmarks/settings/skill_mix.py --skills skills.csv --topics topics.txt
    python benchmarks/settings/skill_mix.py --model NAME

The last command asks another model, with fewer skills, topics and tokens.
What is written, the soft prompt, activations and verdicts are kept under runs/settings/skill_mix,
and read back. Of a list of your own the rules grade those skills they know by name.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from page import Page, asked, kept, kept_table, opened
from room import refuse_too_large, told_beforehand
from skill_mix_neurons import neurons
from skill_mix_texts import DONE, copies, rates, rates_of_the_rules, rules, samples

import lens_skills as ls
from lens_skills.generation import Graded
from lens_skills.models import SoftPrompt
from lens_skills.soft_prompts import initial_prompt
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.tasks.skill_mix import chosen_skills, own_topics, read_topics

WORDING = "{definitions}\n\nNow {skills} in a text about {topic}."
LEAN = {"practice": 8, "others": 28, "ask": 3, "tokens": 24, "epochs": 4, "of": 6, "controls": 20,
        "span": 8}  # fmt: skip
DIFFER = {
    "texts": "texts by the trained and the untrained prompt",
    "topics": "topics",
    "untrained": "share of texts that show the skill asked for, untrained prompt",
    "trained": "the same, trained prompt",
    "difference": "trained less untrained, per topic",
    "difference_low": "the same, lower end of its 95 % interval",
    "difference_high": "the same, upper end",
    "before_confirmed": "neurons confirmed before the first word, all metrics",
    "text_confirmed": "neurons confirmed over the text: does what was asked",
    "confidence_confirmed": "neurons confirmed over the text: mean log-probability",
}
TEXT = "\nExample:"  # the tokens a prompt begins from; read as they are they are the control


def written(
    folder: Path, model: Any, task: Any, prompt: Any, seed: int, given: Namespace
) -> Graded:
    """Texts read back from a folder, or written there; an interrupted run goes on."""
    so_far = folder.with_name(f"{folder.name} so far")
    with ls.config(batch_size=given.batch):
        graded = kept(
            folder, Graded,
            lambda: ls.generate(
                model, task, prompt=prompt, max_new_tokens=given.tokens, seed=seed,
                checkpoint=so_far,
            ),
        )  # fmt: skip
    return ls.grade(graded, {"rules": rules})


def drawn(task: ls.Task, draws: int) -> ls.Task:
    """Each prompt several times, each with random numbers of its own."""
    return ls.Task(
        task.name,
        [replace(e, id=f"{e.id} #{n}") for e in task for n in range(1, draws + 1)],
    )


def lessons(
    graded: Graded, skills: Any, topics: tuple[str, ...], most: int
) -> tuple[Any, dict[str, int]]:
    """Texts that show a skill, as answers to the prompt that asks for it on their topic.

    Whatever the text was asked for: what it shows is what it would have been right for. Only its
    first paragraph, in which the rules must find the skill again, and not more than a tenth of it
    copied: what follows is mostly talk about the text. At most ``most`` per skill.
    """
    by_pair = {
        (example.group, example.column("skills")): example
        for example in ls.tasks.skill_mix(skills, topics, k=1, wording=WORDING)
    }
    rows, counts = [], dict.fromkeys((skill.name for skill in skills), 0)
    for place, example in enumerate(graded.examples):
        text = graded.texts[place].strip().split("\n\n")[0]
        for skill in counts:
            asks = by_pair[example.group, skill]
            shown = ls.graders.detectors(text, asks).get(skill)
            if not shown or counts[skill] >= most or graded.copied[place] > 0.1:
                continue
            counts[skill] += 1
            rows.append(replace(asks, id=f"{asks.id} / {place}", answer=" " + text))
    return ls.Task("texts that show what is asked", rows), counts


def sorted_topics(given: Namespace) -> tuple[tuple[str, ...], ...]:
    """Topics to practise on and topics to test on, in an order drawn once."""
    topics = own_topics() if given.topics is None else read_topics(given.topics)
    order = [topics[i] for i in np.random.default_rng(0).permutation(len(topics))]
    first, n = given.practice, len(order)
    least = 3 * FEWEST_GROUPS
    if n < first + least or given.others < least:
        raise SystemExit(
            f"{min(n - first, given.others)} topics to test on: exploring, confirming and "
            f"intervening need {FEWEST_GROUPS} each, {least} in all (--others), beside the {first} "
            "to practise on."
        )
    return tuple(order[:first]), tuple(order[first:][: given.others])


def learned(page: Page, model: Any, graded: Graded, skills: Any, topics: Any, given: Namespace):
    """The soft prompt, and what it is worth on topics it was not trained on."""
    task, counts = lessons(graded, skills, topics, given.lessons)
    learn, test = task.split(0.75, 0.25, seed=0, by=())
    prompt = kept(
        given.runs / "skill_mix" / "prompt", SoftPrompt,
        lambda: ls.fit_prompt(
            model, learn, n_tokens=given.vectors, text=TEXT, lr=given.lr, epochs=given.epochs,
            batch_size=8, schedule="cosine", held_out=0.2, patience=given.epochs,
            ending=model.tokenizer.eos_token,
        ),
    )  # fmt: skip
    if len(test) < 2:
        raise SystemExit(
            f"{len(task)} texts show what was asked, too few to learn from and to test on. "
            f"Practise on more topics: --practice {2 * given.practice} (and remove {given.runs})."
        )
    # Only means are shown, and few topics may leave one here: each text is its own group.
    each = ls.Task(test.name, [replace(example, group=example.id) for example in test])
    losses = ls.compare_prompts(model, each, prompt, hard=(TEXT,)).frame()
    rows = [r for r in losses.to_dict("records") if r["metric"] == "log_probability"]
    n_tokens = np.mean([len(model.to_tokens(e.answer, prepend_bos=False)[0]) for e in test])
    losses = pd.DataFrame({"prompt": r["prompt"], "loss": -r["mean"] / n_tokens} for r in rows)
    page.say(
        f"**A prompt trained on what it got right.** {len(graded)} texts on {len(topics)} practice "
        "topics, written with the untrained ending. Wherever the rules find a skill, asked for or "
        "not, the first paragraph becomes the answer to a prompt that asks for that skill, and the "
        f"end of the text is to follow it (at most {given.lessons} per skill, copies left out): "
        f"{len(task)} lessons on {sum(n > 0 for n in counts.values())} skills. "
        f"{len(learn)} to learn from (one topic in "
        f"five only looked at, to stop), {len(test)} on other topics for the table. "
        f"{given.vectors} vectors after the input, begun from the tokens of {TEXT!r}; nothing "
        "else of the model moves."
    )
    page.table(
        losses,
        f"Loss on {len(test)} held-out lessons, nats per token of the answer (its end, which the "
        "training counts too, left out):",
    )
    by = losses.set_index("prompt")["loss"]
    best = min(v for k, v in by.items() if not str(k).startswith("trained"))
    mine = min(v for k, v in by.items() if str(k).startswith("trained"))
    page.say(
        f"The trained prompt costs {mine:.3f} nats per token, the best of the others {best:.3f}: "
        + (
            "a gain."
            if mine < best - 0.01
            else "no gain worth the name. The lessons are the model's own texts, written with the "
            "untrained vectors, so that there was little to learn but when to stop."
        )
    )
    page.picture(
        ls.figures.learning_curves(prompt), "curve",
        "Loss of the soft prompt while it was trained, on lessons and on held-out topics. "
        "Accuracy asks for the very words of a text, which nobody hits.",
    )  # fmt: skip
    return prompt


def main() -> None:
    given = asked(
        __doc__,
        LEAN,
        skills={"type": Path, "help": "a CSV file of skills; default our own twenty"},
        topics={"type": Path, "help": "a file of topics, one a line; default our own 36"},
        practice={"type": int, "default": 8, "help": "topics to practise on"},
        others={"type": int, "default": 28, "help": "topics to test on, at most"},
        ask={"type": int, "default": 6, "help": "skills asked for on those"},
        draws={"type": int, "default": 2, "help": "texts for each prompt"},
        tokens={"type": int, "default": 40, "help": "length of a text, at most"},
        batch={"type": int, "default": 40},
        vectors={"type": int, "default": 3},
        lessons={"type": int, "default": 10, "help": "texts per skill, at most"},
        epochs={"type": int, "default": 12},
        lr={"type": float, "default": 0.02},
        span={"type": int, "default": 10, "help": "tokens of a text that a verdict reads"},
        top={"type": int, "default": 2},
        controls={"type": int, "default": 40},
        of={"type": int, "default": 0, "help": "the first so many skills; 0: all"},
    )
    if given.quick:
        given.practice, given.others, given.ask, given.tokens, given.epochs = 4, 24, 4, 12, 1
        given.controls, given.top, given.span = 48, 2, 6
    torch.manual_seed(0)
    page = Page(
        "skill_mix", "Skill-Mix: open-ended writing", asked=given,
        command="python benchmarks/settings/skill_mix.py",
    )  # fmt: skip
    refuse_too_large(given.model)
    model = opened(given.model)
    skills, runs = chosen_skills(given.skills), given.runs / "skill_mix"
    skills = skills[: given.of or None]
    practice, others = sorted_topics(given)
    start = initial_prompt(model, given.vectors, text=TEXT)
    task = ls.tasks.skill_mix(skills, practice, k=1, wording=WORDING)
    if page.slug:
        told = kept_table(
            runs / "told beforehand.csv",
            lambda: pd.DataFrame({"said": [told_beforehand(
                "generate", model, task, prompt=start, max_new_tokens=given.tokens
            )]}),
        )  # fmt: skip
        page.say(f"**Memory and time**, {told['said'][0]}.")
    first = written(runs / "practice", model, task, start, 0, given)
    # The skills asked for from here on are those the practice texts show most often when asked.
    rate = first.summary().set_index("skill")["mean_asked"].drop(DONE).dropna()
    often = rate.sort_values(ascending=False, kind="stable").index[: given.ask].tolist()
    chosen = [skill for skill in skills if skill.name in often]
    page.say(
        f"**Asked**: does {page.model if page.slug else 'SmolLM2'} show a rhetorical, logical or "
        "literary skill when the prompt "
        "names, defines and illustrates it, and do neurons know beforehand, at the vectors of a "
        "soft prompt, whether the text to come will show it and how sure the model will be of it? "
        f"One skill a prompt, one topic a prompt, texts of at most {given.tokens} tokens, drawn "
        "at temperature 0.8 (top-p 0.95, seeded). The group is the topic: splits then hold the "
        "same skills on topics never seen, so that what is confirmed is about the skill; grouping "
        "by skill would leave no skill to confirm, and by skill and topic together would let a "
        "topic's words pass from one split to the next. The control task gives each *skill asked "
        "for* a random label; neurons that know which skill was asked reach nearly "
        "1 on that, so the same is repeated with what was asked partialled out (the control task "
        "then has nothing left to bar)."
    )
    rates_of_the_rules(page)
    copies(page, first)
    prompt = learned(page, model, first, list(skills), practice, given)
    prompts = ls.tasks.skill_mix(chosen, others, k=1, wording=WORDING)
    task = drawn(prompts, given.draws)
    texts = {
        "trained": written(runs / "trained", model, task, prompt, 0, given),
        "untrained": written(runs / "untrained", model, task, start, 0, given),
    }
    page.say(
        f"**Written**: {len(prompts)} prompts ({len(chosen)} skills × {len(task.groups)} topics; "
        "the skills are those that the practice texts show most often when asked), "
        f"{given.draws} draws each with the trained prompt and with the untrained one: "
        f"{2 * len(task)} texts, beside the {len(first)} to practise on. Graded is the first "
        "paragraph: what follows a blank line is mostly talk about the text."
    )
    rates(page, texts["untrained"], texts["trained"], often)
    if page.slug:
        cut = {name: sum(not ended for ended in graded.ended) for name, graded in texts.items()}
        page.say(
            f"**Longer than the budget** of {given.tokens} tokens, and cut there: "
            + ", ".join(f"{n} of {len(texts[name])} texts ({name})" for name, n in cut.items())
            + ". A cut text can show less."
        )
    samples(page, texts["trained"])
    neurons(page, model, {"trained": prompt, "untrained": start}, texts, often, given)
    page.differ(
        DIFFER,
        f"SmolLM2's page asks for all twenty skills on 8 topics to practise on, and for six on 28; "
        f"this one for {len(skills)} on {len(practice)} and for {len(chosen)} on {len(others)}, in "
        f"texts of at most {given.tokens} tokens for 40: few, and a difference is one of model and "
        "of data.",
    )
    page.write()


if __name__ == "__main__":
    main()
