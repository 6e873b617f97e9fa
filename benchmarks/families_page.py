"""The tables of ``docs/families.md``: which verbs are right on which family, and why not."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

VERBS = ("open", "score", "sweep", "verify", "edit", "soft prompt", "circuit")
SHOWN = {"y": "✓", "n": "–", "W": "**wrong**", "E": "**error**"}
MOST_NAMED = 12


def families(numbers: Mapping[str, Any]) -> list[list[str]]:
    """One row per family: its verbs in each column, as marks in the order of `VERBS`."""
    columns = sorted(numbers["outcomes"])
    names = dict.fromkeys(name for column in columns for name in numbers["outcomes"][column])
    rows = [["family", *(f"TransformerLens {column}" for column in columns)]]
    for name in names:
        row = [f"`{name}`"]
        for column in columns:
            found = numbers["outcomes"][column].get(name)
            row.append("" if found is None else cell(found))
        rows.append(row)
    return rows


def cell(found: str) -> str:
    """The marks of seven verbs, or one word where they agree.

    >>> cell("yyyyyyy"), cell("nnnnnnn"), cell("yyyynyn")
    ('all', 'not opened', '✓✓✓✓–✓–')
    """
    if set(found) == {"y"}:
        return "all"
    return "not opened" if set(found) == {"n"} else "".join(SHOWN[letter] for letter in found)


def reasons(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Each sentence of refusal once, with the verbs it ends and the families that meet it."""
    met: dict[str, dict[str, set[str]]] = defaultdict(lambda: {"verbs": set(), "who": set()})
    for column, rows in numbers["why"].items():
        for family, by_verb in rows.items():
            ended = by_verb if "open" not in by_verb else {"open": by_verb["open"]}
            for verb, why in ended.items():
                entry = met[general(why)]
                entry["verbs"].add(verb)
                entry["who"].add(f"`{family}` ({column})")
    found = [["what is said", "verbs", "families"]]
    for why, entry in sorted(met.items(), key=lambda item: (-len(item[1]["who"]), item[0])):
        who = sorted(entry["who"])
        more = f" and {len(who) - MOST_NAMED} more" if len(who) > MOST_NAMED else ""
        verbs = [verb for verb in VERBS if verb in entry["verbs"]]
        found.append([why, ", ".join(verbs), ", ".join(who[:MOST_NAMED]) + more])
    return found


# What load_model says at length, with numbers and versions, in short.
IN_SHORT = {
    "Could not determine supported architecture": "TransformerLens has no adapter for it.",
    "is an encoder-decoder": "Its decoder reads another text beside its own.",
    "HookedTransformer cannot hold.*As a TransformerBridge it passes": (
        "HookedTransformer cannot hold it; as a TransformerBridge it passes, and is opened as one "
        "where no implementation is asked for."
    ),
    "As a HookedTransformer it does not compute.*As a TransformerBridge it passes": (
        "As a HookedTransformer it computes something else; as a TransformerBridge it passes, and "
        "is opened as one where no implementation is asked for."
    ),
    "its forward pass fails": "Its forward pass fails in TransformerLens.",
    "does not compute what the original computes": (
        "What TransformerLens computes is not what the original computes; the message has the "
        "numbers."
    ),
    "has no neurons.*mixture of experts": (
        "A mixture of experts: neurons are active only on the tokens routed to them. The residual "
        "stream and heads can be read, and the layers without experts."
    ),
    "has no neurons.*there is no MLP": "There is no MLP. The residual stream can be read.",
}


def general(why: str) -> str:
    """The sentence without what differs from family to family.

    >>> general("LlamaForCausalLM has 3 layers.")
    '… has # layers.'
    """
    for pattern, short in IN_SHORT.items():
        if re.search(pattern, why):
            return short
    text = re.sub(r"\b\w+(?:ForCausalLM|LMHeadModel|Model|ForMaskedLM|Config)\b", "…", why)
    text = re.sub(r"… \(…\)", "…", text)
    text = re.sub(r"\[[^\]]*\]?", "[…]", text)
    text = re.sub(r"(?<![\w.])\d[\d.e+-]*\d?(?!\w)", "#", text)
    text = text if len(text) <= 260 else text[:259] + "…"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def precisions(numbers: Mapping[str, Any]) -> list[list[str]]:
    """One row per family and kind of weights, as `families` has them."""
    columns = sorted({column for row in numbers["precisions"].values() for column in row})
    rows = [["family, weights", *(f"TransformerLens {column}" for column in columns)]]
    for name, found in numbers["precisions"].items():
        family, _, weights = name.partition(" ")
        shown = [cell(found[column]) if column in found else "" for column in columns]
        rows.append([f"`{family}`, {weights}", *shown])
    return rows


def tolerances(numbers: Mapping[str, Any]) -> list[list[str]]:
    """What counts as equal, per kind of weights."""
    rows = [["weights", "log-probabilities, loss (nats)", "r", "effects, of the largest or 1 nat"]]
    for name, bars in numbers["tolerances"].items():
        rows.append([name, *(f"{bars[key]:g}" for key in ("nats", "r", "effect"))])
    return rows


def counts(numbers: Mapping[str, Any]) -> list[list[str]]:
    """How many verbs of all families and columns are right, refused, wrong, raw: before and now."""
    words = {"right": "right", "refused": "refused in a sentence", "wrong": "silently wrong",
             "raw": "a library's bare error"}  # fmt: skip
    rows = [["family × verb × implementation", "before", "now"]]
    for key, text in words.items():
        rows.append([text, str(numbers[f"{key}_before"]), str(numbers[f"{key}_now"])])
    return rows
