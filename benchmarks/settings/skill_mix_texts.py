"""What the rules of `skill_mix` find: on texts made to try them, in copies, in what was written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from page import Page
from scipy.stats import t

import lens_skills as ls
from lens_skills.generation import Graded

DONE = "does what was asked"
FRESH = Path("tests/generation/fresh_texts.csv")


def rules(text: str, example: ls.Example) -> dict[str, float]:
    """What the rules find in the first paragraph, and whether it is what was asked for.

    After a blank line the model mostly talks about the text, and then says "you" and "example".
    """
    found = ls.graders.detectors(text.strip().split("\n\n")[0], example)
    wanted = [value for skill, value in found.items() if example.labels.get(skill)]
    return found | {DONE: min(wanted, default=0.0)}


def rates_of_the_rules(page: Page) -> None:
    """Hits and false alarms on texts written before the rules were read."""
    frame = pd.read_csv(FRESH)
    now = [
        int(ls.graders.detectors(text, ls.Example(id="a", prompt="Write."))[skill])
        for skill, text in zip(frame["skill"], frame["text"], strict=True)
    ]
    rows = []
    for number, name in ((1, "first, then mended on"), (2, "second, held out of that mending")):
        part = frame[frame["round"] == number].assign(now=np.array(now)[frame["round"] == number])
        positive, negative = part[part["shown"] == 1], part[part["shown"] == 0]
        rows.append(
            {"round": name, "positives": len(positive), "near misses": len(negative)}
            | {f"found, {c}": int(positive[c].sum()) for c in ("before", "mended", "now")}
            | {f"false alarms, {c}": int(negative[c].sum()) for c in ("before", "mended", "now")}
        )
    held = rows[1]
    page.figures |= {
        "fresh_positives": held["positives"], "fresh_found": held["found, mended"],
        "fresh_near_misses": held["near misses"],
        "fresh_false_alarms": held["false alarms, mended"],
    }  # fmt: skip
    page.table(
        pd.DataFrame(rows),
        "**The rules on fresh texts**: per skill two texts that show it and two that only look "
        "like it, in two rounds, written from the definitions before the rules were read.",
    )
    page.say(
        "What to expect of a text nobody tuned on is the second round before its own mending: "
        f"{held['found, mended']} of {held['positives']} found, {held['false alarms, mended']} "
        f"of {held['near misses']} false alarms. The mending on round one did not carry over to "
        f"round two ({held['found, before']} found before it). `now`: after mending on both, which "
        "measures nothing any more. A label from these rules is a noisy label, and noise lowers "
        "every correlation below."
    )


def copies(page: Page, graded: Graded) -> None:
    """What the rules would have said of copies."""
    pairs = list(zip(graded.examples, graded.texts, strict=True))
    seen = [ls.graders.detectors(text, example) for example, text in pairs]
    bare = [ls.graders.detectors(text, replace(example, prompt="")) for example, text in pairs]
    lost = [
        bool(example.labels.get(skill))
        for (example, _), own, both in zip(pairs, seen, bare, strict=True)
        for skill, value in both.items()
        if value and not own[skill]
    ]
    page.say(
        "**Copies of the prompt do not count.** The prompt gives an example of the skill, and a "
        "small model likes to repeat it. The rules do not see runs of five words or more, nor "
        f"whole sentences, that stand in the prompt too. On the {len(graded)} practice texts this "
        f"takes {len(lost)} of {int(sum(sum(row.values()) for row in bare))} findings away, "
        f"{sum(lost)} of them of the very skill that was asked for."
    )


def rates(page: Page, first: Graded, second: Graded, skills: list[str]) -> None:
    """How often each skill is shown: with the written ending, and with the trained vectors."""
    rows = []
    for skill in skills:
        row: dict[str, Any] = {"skill": skill}
        for name, graded in (("untrained", first), ("trained", second)):
            column = graded.grades[skill].numpy()
            wanted = np.array([bool(e.labels.get(skill)) for e in graded.examples])
            row[f"{name}: asked"] = float(column[wanted].mean())
            row[f"{name}: not asked"] = float(column[~wanted].mean())
        rows.append(row)
    page.table(
        pd.DataFrame(rows), "Share of texts that show a skill, where asked for and where not:"
    )
    told = []
    for name, graded in (("untrained", first), ("trained", second)):
        shown = graded.grades[DONE].numpy()
        told.append(
            f"{name}: {int(shown.sum())} of {len(shown)} texts show what they were asked for, "
            f"{np.mean(graded.copied):.0%} of their runs of four words stand in the prompt, "
            f"{np.mean(graded.ended):.0%} ended by themselves, mean log-probability "
            f"{float(graded.mean_log_probability.mean()):.2f} nats per token"
        )
    wanted = [float(graded.grades[DONE].mean()) for graded in (first, second)]
    other = [
        float(np.mean([g.grades[s].numpy()[i] for s in skills for i, e in enumerate(g.examples)
                       if not e.labels.get(s)]))
        for g in (first, second)
    ]  # fmt: skip
    page.say("; ".join(told) + ".")
    for name, here, elsewhere in zip(("Untrained", "Trained"), wanted, other, strict=True):
        page.say(
            f"{name}: a skill is shown in {here:.1%} of the texts that were asked for it and in "
            f"{elsewhere:.1%} of those asked for another: "
            + ("asking helps." if here > 1.5 * elsewhere else "asking hardly helps.")
        )
    topics = sorted({example.group for example in first.examples})
    gains = [
        [
            float(graded.grades[DONE].numpy()[[e.group == topic for e in graded.examples]].mean())
            for graded in (first, second)
        ]
        for topic in topics
    ]
    gain = np.array([after - before for before, after in gains])
    reach = float(t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5)
    low, high = gain.mean() - reach, gain.mean() + reach
    page.figures |= {
        "texts": len(first) + len(second), "topics": len(gain), "untrained": wanted[0],
        "trained": wanted[1], "difference": gain.mean(), "difference_low": low,
        "difference_high": high,
    }  # fmt: skip
    page.say(
        f"Trained against untrained, per topic: {gain.mean():+.1%} [{low:+.1%}, {high:+.1%}] "
        f"(95 %, t over {len(gain)} topics): "
        + (
            "the training **harmed** (its texts end sooner, and a shorter text can show less)."
            if high < 0 and np.mean(second.ended) > np.mean(first.ended)
            else "the training **harmed**."
            if high < 0
            else "the training helped."
            if low > 0
            else "no difference that these topics could tell from chance."
        )
    )


def samples(page: Page, graded: Graded) -> None:
    """Three texts: one that shows what was asked, one that shows something else, one nothing."""
    grades = graded.grades
    shown = [[s for s, c in grades.items() if c[i] and s != DONE] for i in range(len(graded))]
    wanted = [{s for s, v in e.labels.items() if v} for e in graded.examples]
    places = range(len(graded))
    picks = [
        next((i for i in places if wanted[i] & set(shown[i])), None),
        next((i for i in places if shown[i] and not wanted[i] & set(shown[i])), None),
        next((i for i in places if not shown[i]), None),
    ]
    lines = [
        f"> *{graded.examples[i].id}* → "
        + " ¶ ".join(
            " ".join(part.split()) for part in graded.texts[i].strip().split("\n\n")
        ).replace("<", "&lt;")
        + f"\n>\n> The rules: {', '.join(shown[i]) or 'nothing'}."
        for i in picks
        if i is not None
    ]
    page.say(
        "**Three texts** by the trained prompt (the first in order that shows what was asked, "
        "something else, nothing; ¶ is a blank line, after which nothing is graded):\n\n"
        + "\n\n<!-- -->\n\n".join(lines)
    )
