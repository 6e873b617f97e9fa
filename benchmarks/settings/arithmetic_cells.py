"""The problems of a model asked for, in parts by operand pairs, and which of them it can do."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from page import Page, kept_table

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.stats.intervals import share_interval

OPERATIONS, DIGITS = ("+", "-", "*", "/"), (1, 2, 3)
LEARNED = ("+", "-", "*")
SHOTS = 4
FEW_GROUPS = 30


class Problems:
    """The parts: real problems to explore, confirm, intervene and test on, generated to learn from.

    Attributes:
        source: What the problems are, in words.
        real: Every problem of the files, or generated where there are none.
        learn: Generated problems of + - x whose pairs of operands are in no other part.
        explore, confirm, intervene, tested: Parts of ``real`` by pairs of operands.
        too_long: How many problems were left out because the answer is longer than the budget.
    """

    def __init__(self, model: Any, given: Namespace) -> None:
        self.real = read(given)
        self.source = "the BIG-bench files" if given.bigbench else "generated problems"
        self.tokens = {
            example.id: [
                model.tokenizer.encode(text, add_special_tokens=False)
                for text in (example.answer, example.foil)
            ]
            for example in self.real
        }
        within = self.real.where(op=list(LEARNED))
        fits = within.where(lambda e: len(self.tokens[e.id][0]) <= given.budget)
        self.too_long, self.asked = len(within) - len(fits), len(within)
        parts = fits.split(0.4, 0.2, 0.2, 0.2, seed=0, by=())
        sizes = (given.explore, given.confirm, given.intervene, given.tested)
        self.explore, self.confirm, _, self.tested = (
            spread(part, n) for part, n in zip(parts, sizes, strict=True)
        )
        told = parts[2].where(lambda e: self.tokens[e.id][0][0] != self.tokens[e.id][1][0])
        self.intervene = spread(told, given.intervene)
        held = {e.group for part in (self.explore, self.confirm, self.tested, self.intervene)
                for e in part}  # fmt: skip
        generated = ls.tasks.arithmetic(LEARNED, digits=digits_of(given), seed=1)
        self.learn = spread(generated.where(lambda e: e.group not in held), given.learn)

    def first_over_foil(self, logits: torch.Tensor, examples: Any) -> torch.Tensor:
        """Logit of the answer's first token less that of the foil's, in nats."""
        first = torch.tensor([[text[0] for text in self.tokens[e.id]] for e in examples])
        picked = logits.gather(1, first.to(logits.device))
        return (picked[:, 0] - picked[:, 1]).double()

    def said(self) -> str:
        """What the parts are, in words."""
        return (
            f"**Problems.** {self.source[0].upper()}{self.source[1:]}: {len(self.real):,} "
            f"of {', '.join(map(str, sorted(set(self.real.column('digits')))))} digits, asked as "
            f"they are ({self.real[0].prompt!r}). For prompts and neurons + − ×, in equal shares "
            f"over operation and digits; {self.too_long:,} of {self.asked:,} are left out because "
            "their answer is longer than the budget of tokens. Groups are unordered pairs of "
            f"operands. {len(self.learn)} generated problems to learn prompts from, of other pairs "
            "than all parts below."
        )


def read(given: Namespace) -> ls.Task:
    """The files' problems of the digits asked for, or as many of the generator."""
    digits = digits_of(given)
    if given.bigbench is None:
        return ls.tasks.arithmetic(OPERATIONS, digits=digits, seed=0)
    task = ls.tasks.bigbench(given.bigbench)
    return task.where(lambda e: e.covariates.get("digits") in digits)


def digits_of(given: Namespace) -> tuple[int, ...]:
    return tuple(range(1, given.digits + 1))


def cells_of(task: ls.Task) -> dict[tuple[str, int], ls.Task]:
    """The problems of each operation and number of digits."""
    columns = task.column("op"), task.column("digits")
    found = {(str(op), int(n)) for op, n in zip(*columns, strict=True)}
    order = [(op, n) for op in OPERATIONS for n in DIGITS if (op, n) in found]
    return {(op, n): task.where(op=op, digits=n) for op, n in order}


def spread(task: ls.Task, n: int) -> ls.Task:
    """About ``n`` examples in equal shares over the cells, in as many groups as can be."""
    cells = cells_of(task).values()
    share = -(-n // len(cells))
    rows = [example for cell in cells for example in ls.tasks.few(cell, share, seed=0)]
    return ls.Task(task.name, rows, task.split_name)


def with_shots(task: ls.Task, given: Namespace) -> ls.Task:
    """The same questions after four answered ones, of pairs that are not asked."""
    asked = {example.group for example in task}
    pool = ls.tasks.arithmetic(OPERATIONS, digits=digits_of(given), seed=2)
    pool = pool.where(lambda e: e.group not in asked)
    shown = [ls.tasks.few(pool.where(op=op), 1, seed=0)[0] for op in OPERATIONS[:SHOTS]]
    before = "".join(f"{example.prompt}{example.answer}\n" for example in shown)
    return ls.Task(task.name, [replace(e, prompt=before + e.prompt) for e in task])


def abilities(page: Page, model: Any, problems: Problems, given: Namespace) -> None:
    """The preflight of each operation and number of digits: whole answer and first token."""
    generated = ls.tasks.arithmetic(OPERATIONS, digits=digits_of(given), seed=3)
    ways: dict[str, ls.Task] = {f"{problems.source}, zero-shot": problems.real}
    if given.bigbench:
        ways["generated, zero-shot"] = generated.where(lambda e: e.covariates["digits"] > 1)
    ways[f"{problems.source}, four-shot"] = problems.real
    tables = []
    for name, task in ways.items():
        count = given.cell if task is problems.real and "zero" in name else given.others
        cells = cells_of(task).values()
        chosen = ls.Task(
            task.name, [e for cell in cells for e in ls.tasks.few(cell, count, seed=0)]
        )
        if name.endswith("four-shot"):
            chosen = with_shots(chosen, given)
        path = given.runs / "arithmetic" / f"abilities {name}.csv"
        found = kept_table(path, lambda chosen=chosen: able_in(model, chosen))
        tables.append(found.assign(way=name))
    table = pd.concat(tables, ignore_index=True)
    shown = [
        {
            "problems": row["way"], "operation": row["op"], "digits": row["digits"],
            "n": row["n"], "groups": row["groups"],
            "whole answer": f"{row['whole']:.2f} [{row['whole_low']:.2f}, {row['whole_high']:.2f}]",
            "first token": f"{row['first']:.2f} [{row['first_low']:.2f}, {row['first_high']:.2f}]",
            "by rule": row["chance"],
            "skill": "yes" if row["whole_low"] > row["chance"] else "no",
        }
        for row in table.to_dict("records")
    ]  # fmt: skip
    table.to_csv(page.out / f"{page.name}_abilities_numbers.csv", index=False, float_format="%.6g")
    first = table[table["way"] == next(iter(ways))]
    few = [f"{r.op} of {r.digits} digits ({r.groups})"
           for r in first.itertuples() if r.groups < FEW_GROUPS]  # fmt: skip
    page.say(
        f"**What {page.model} can do.** {problems.source[0].upper()}{problems.source[1:]} "
        f"zero-shot: at most {given.cell} problems of each operation and number of digits, one of "
        f"each group while there are groups; the other ways {given.others} of each. Whole answer: "
        "written greedily, and then the end. *By rule*: the better of the most frequent answer and "
        "copying an operand, on the same problems; *skill*: the whole interval of the whole answer "
        "lies above it. Intervals are exact ones over groups"
        + (
            f". Fewer than {FEW_GROUPS} groups zero-shot, the data having no more: "
            f"{', '.join(few)}."
            if few
            else "."
        )
    )
    page.table(pd.DataFrame(shown), "Share of right answers with 95 % intervals:", "abilities")
    shots = table[table["way"].str.endswith("four-shot")]
    page.figures |= {
        "zero_shot_whole": float(first["whole"].mean()),
        "zero_shot_first": float(first["first"].mean()),
        "few_shot_whole": float(shots["whole"].mean()),
        "cells": len(first), "cells_with_skill": int((first["whole_low"] > first["chance"]).sum()),
    }  # fmt: skip
    lacks = first[first["whole_low"] <= first["chance"]]
    page.say(
        "Zero-shot the model has no skill to explain in "
        + ", ".join(f"{r.op} of {r.digits} digits" for r in lacks.itertuples())
        + ": correct answers there are no better than a rule's."
        if len(lacks)
        else "Zero-shot there is a skill to explain in every cell."
    )
    told = given.runs / "arithmetic" / "preflight.csv"
    advice = kept_table(told, lambda: advised(model, problems))
    page.say(
        f"`ls.preflight` of the {len(problems.intervene)} problems to intervene on: "
        + " ".join(f"{line}." for line in advice["line"])
    )


def advised(model: Any, problems: Problems) -> pd.DataFrame:
    """What the preflight says of the problems the verdicts are on."""
    found = ls.preflight(model, problems.intervene)
    ways = [f"{c.name} {c.rate:.0%} (by {c.rule} {c.chance:.0%})" for c in found.competences]
    skill = {True: "a skill to explain", False: "no skill to explain", None: "too few groups"}
    return pd.DataFrame({"line": [f"{', '.join(ways)}: {skill[found.skill]}", *found.advice]})


def able_in(model: Any, task: ls.Task) -> pd.DataFrame:
    """One row per cell: shares of whole answers and first tokens with intervals, and the rule's."""
    values = evaluate(model, task, ["correct", "first_token_correct"])
    place = {example.id: row for row, example in enumerate(task)}
    rows = []
    for (op, digits), cell in cells_of(task).items():
        groups = [example.group for example in cell]
        row: dict[str, Any] = {"op": op, "digits": digits, "n": len(cell),
                               "groups": len(set(groups))}  # fmt: skip
        for short, metric in (("whole", "correct"), ("first", "first_token_correct")):
            right = values[metric][[place[example.id] for example in cell]]
            low, high = share_interval(right, groups)
            row |= {short: float(right.mean()), f"{short}_low": float(low),
                    f"{short}_high": float(high)}  # fmt: skip
        answers = pd.Series([example.answer for example in cell])
        copied = [
            (answers == pd.Series([str(e.column(name)) for e in cell])).mean()
            for name in ("operand_a", "operand_b")
        ]
        rows.append(
            row | {"chance": float(max(answers.value_counts(normalize=True).max(), *copied))}
        )
    return pd.DataFrame(rows)
