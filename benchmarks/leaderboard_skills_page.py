"""The page of `leaderboard_skills`, from kept results: tables, a picture, and what they say."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import skill_tasks
from leaderboard_page import markdown
from pictures import keep
from scipy.stats import t as student

from lens_skills.plotting.ranking_plots import leaderboard
from lens_skills.ranking import METHODS, MethodComparison
from lens_skills.ranking.method_comparison import BASELINES
from lens_skills.ranking.task_differences import sign_test

KS = (10, 50)
DEVELOPMENT = ("smollm2/agreement", "smollm2/capitals", "smollm2/past_tense")
"""Looked at while the methods were made; judged are the others."""

OURS = ("exact", "specific", "specific_exact")
PLAIN = "prediction"
MODELS = {
    "smollm2": "SmolLM2-135M",
    "arithmetic_small": "arithmetic-small",
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B-Instruct (a 4-bit GGUF of it)",
}


def kept(runs: Path) -> list[dict[str, Any]]:
    """What is kept of every model and task: about, and where it was run the comparison."""
    found = []
    for path in sorted(runs.glob("*/*/about.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        about |= {"model": path.parent.parent.name}
        about["key"] = f"{about['model']}/{about['task']}"
        if about["skill"]:
            about["comparison"] = MethodComparison.load(path.parent / "comparison")
            about["oracle"] = pd.read_csv(path.parent / "oracle.csv")
        found.append(about)
    return found


def counted(one: dict[str, Any]) -> Any:
    """One row per method of a task: hits, skill hits, supports and recall at each k; seconds."""
    comparison: MethodComparison = one["comparison"]
    neurons: Any = comparison.neurons()
    effects = dict(zip(one["oracle"]["name"], one["oracle"]["effect"].abs(), strict=True))
    own = neurons[~neurons["method"].isin(["rotated basis"])]
    effects |= dict(zip(own["name"], own["effect"].abs(), strict=True))
    largest = sorted(effects, key=lambda name: -effects[name])
    rows = []
    for method in comparison.all_methods:
        if method == "rotated basis":
            continue
        row = comparison[method]
        listed = neurons[neurons["method"] == row.method].sort_values("rank")
        entry: dict[str, Any] = {"key": one["key"], "method": method, "seconds": row.seconds}
        for k in KS:
            top = listed[listed["rank"] <= k]
            entry |= {
                f"causal_{k}": int((top["verdict"] != "-").sum()),
                f"skill_{k}": int(top["skill"].fillna(value=False).astype(bool).sum()),
                f"supports_{k}": int((top["verdict"] == "supports").sum()),
                f"recall_{k}": len(set(top["name"]) & set(largest[:k])) / k,
            }
        rows.append(entry)
    return pd.DataFrame(rows)


def summed(rows: Any) -> Any:
    """One row per method: sums over the tasks, mean recall and seconds; most skill hits first."""
    whole = rows.groupby("method", sort=False).agg(
        tasks=("key", "nunique"),
        **{f"{what}_{k}": (f"{what}_{k}", "sum") for k in KS
           for what in ("causal", "skill", "supports")},
        **{f"recall_{k}": (f"recall_{k}", "mean") for k in KS},
        seconds=("seconds", "mean"),
    )  # fmt: skip
    return whole.sort_values(["skill_50", "skill_10"], ascending=False).reset_index()


def difference(rows: Any, one: str, other: str, column: str) -> dict[str, Any]:
    """Over tasks with both: mean paired difference, its Student interval, the sign test's p."""
    table = rows.pivot(index="key", columns="method", values=column)
    pairs = table[[one, other]].dropna()
    found = (pairs[one] - pairs[other]).to_numpy(dtype=float)
    n, half = len(found), math.nan
    if n > 1:
        half = float(student.ppf(0.975, n - 1) * found.std(ddof=1) / math.sqrt(n))
    total = float(pairs[other].sum())
    return {
        "what": column,
        "method": one,
        "against": other,
        "tasks": n,
        "more": int((found > 0).sum()),
        "fewer": int((found < 0).sum()),
        "difference": float(found.mean()),
        "low": float(found.mean()) - half,
        "high": float(found.mean()) + half,
        "p": sign_test(found.tolist()),
        "ratio": float(pairs[one].sum()) / total if total else math.nan,
    }


def compared(rows: Any, board: Any) -> Any:
    """Ours against the best of the others at each k, with the plain prediction and without it."""
    found = []
    for k in KS:
        column = f"skill_{k}"
        others = board[~board["method"].isin([*OURS, *BASELINES])].sort_values(
            [column, f"causal_{k}"], ascending=False, kind="stable"
        )
        best = list(others["method"])
        rivals = [*best[:1], *[PLAIN][: PLAIN in best], *[x for x in best if x != PLAIN][:1]]
        for rival in dict.fromkeys(rivals):
            for own in (*OURS, PLAIN):
                if own != rival and own in set(rows["method"]):
                    found.append(difference(rows, own, rival, column))
    return pd.DataFrame(found)


def drawn(rows: Any, board: Any, k: int) -> Any:
    """Each method's share of skill hits at k over the judged tasks, and on each model."""
    shares = rows.assign(
        share=rows[f"skill_{k}"] / k, model=[key.split("/")[0] for key in rows["key"]]
    )
    models = list(dict.fromkeys(shares["model"]))
    found = []
    for method in board["method"]:
        own = shares[shares["method"] == method]
        n, half = len(own), 0.0
        if n > 1:
            half = float(student.ppf(0.975, n - 1) * own["share"].std(ddof=1) / math.sqrt(n))
        mean = float(own["share"].mean())
        entry = {"method": method, "n": k * n, "hits": int(own[f"skill_{k}"].sum())}
        entry |= {"share": mean, "low": max(mean - half, 0.0), "high": min(mean + half, 1.0)}
        entry |= {one: float(own[own["model"] == one]["share"].mean()) for one in models}
        found.append(entry)
    frame: Any = pd.DataFrame(found)
    last = frame["method"].isin(BASELINES)
    frame = pd.concat([frame[~last].sort_values("share", ascending=False), frame[last]])
    names = {one: MODELS.get(one, one).split(" (")[0] for one in models}
    drawing = leaderboard(
        frame.reset_index(drop=True), names, k=k,
        note="Bars: mean over the judged tasks with its 95 % interval over tasks.",
    )  # fmt: skip
    about = dict(drawing.about) | {
        "axis": "all tasks: skill hits",
        "columns": "on the tasks of a model, in %",
        "title": "Whose neurons are causes of this skill and not of others?",
        "lines": [f"{rows['key'].nunique()} tasks, the {k} strongest neurons of each method; "
                  "right: per model"],
    }  # fmt: skip
    return replace(drawing, about=about)


def reading(board: Any, pairs: Any) -> list[str]:
    """What the tables say, in words made from their numbers."""
    said = []
    for k in KS:
        best = board.sort_values(f"skill_{k}", ascending=False).iloc[0]
        said.append(
            f"- At {k}: most skill hits has `{best['method']}`, {best[f'skill_{k}']:.0f} (causal "
            f"{best[f'causal_{k}']:.0f}); random neurons "
            f"{board.set_index('method').loc['random', f'skill_{k}']:.0f}."
        )
    for row in pairs.to_dict("records"):
        won = row["low"] > 0 and row["ratio"] >= 1.5
        said.append(
            f"- `{row['method']}` against `{row['against']}`, "
            f"{row['what'].replace('_', ' hits at ')}"
            f": {row['ratio']:.2f} times as many, paired difference {row['difference']:+.2f} "
            f"[{row['low']:+.2f}, {row['high']:+.2f}] a task, more on {row['more']} and fewer on "
            f"{row['fewer']} of {row['tasks']} tasks (sign test p {row['p']:.2g})"
            + ("; the goal of 1.5 times is met." if won else ".")
        )
    return said


def write_page(runs: Path, out: Path) -> Any:
    """Page, picture and tables from what is kept; the summed table."""
    every = kept(runs)
    ran = [one for one in every if one["skill"]]
    judged = [one for one in ran if one["key"] not in DEVELOPMENT] or ran
    rows: Any = pd.concat([counted(one) for one in ran], ignore_index=True)
    mine = rows[rows["key"].isin([one["key"] for one in judged])]
    board = summed(mine)
    pairs = compared(mine, board)
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in (("methods", board), ("tasks", rows), ("differences", pairs)):
        frame.to_csv(out / f"table_{name}.csv", index=False)
    keep(drawn(mine, board, KS[0]), out / "skill_hits")
    (out / "README.md").write_text(_page(every, board, pairs), encoding="utf-8")
    return board


def _tasks(every: Sequence[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for one in every:
        specific = one["comparison"].specific if one["skill"] else None
        rows.append({
            "model": one["model"],
            "task": one["task"],
            "role": "development" if one["key"] in DEVELOPMENT else "judged",
            "on the tried examples": one["said"],
            "groups": one.get("n_groups", ""),
            "association with": one.get("metric", "left out: not told from chance"),
            "contrasts": ", ".join(one.get("contrasts", [])),
            "causal": "" if specific is None else int((~specific.relative.isnan()).sum()),
            "skill": "" if specific is None else int(specific.is_skill.sum()),
            "minutes": round(one["minutes"], 2),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _page(every: Sequence[dict[str, Any]], board: Any, pairs: Any) -> str:
    ran = [one for one in every if one["skill"]]
    minutes = sum(one["minutes"] for one in every)
    done = {(one["model"], one["task"]) for one in every}
    missing = [name for slug, name in MODELS.items() if slug not in {o["model"] for o in every}]
    missing += [
        f"{task} on {name}"
        for slug, name in MODELS.items()
        for task in (skill_tasks.ARITHMETIC if slug == "arithmetic_small" else skill_tasks.TASKS)
        if name not in missing and (slug, task) not in done
    ]
    controls = {(one["model"], one["controls"]) for one in ran}

    def most(name: str) -> int:
        return max(one[name] for one in ran)

    parts = [
        "# Whose neurons are causes of this skill, and not of others?",
        "Written by `python benchmarks/leaderboard_skills.py --page` from what "
        "`python benchmarks/leaderboard_skills.py [--model NAME] --data FOLDER` keeps, with NAME "
        f"`arithmetic-small` or `Qwen/Qwen2.5-Coder-0.5B-Instruct`; {minutes:.0f} minutes of "
        "processor time on one thread.",
        "![Share of skill hits of each method](skill_hits.png)",
        markdown(board),
        "`causal`, `skill`, `supports`: sums over the judged tasks of the hits among the 10 and 50 "
        "strongest; `recall`: of the 10 and 50 largest effects that anybody measured on the task "
        "(the oracle's and all methods'), the share named, mean over tasks; `seconds`: of the "
        "ranking, mean over tasks. [All tasks](table_tasks.csv), [methods](table_methods.csv), "
        "[differences](table_differences.csv).",
        "\n".join(reading(board, pairs)),
        "Intervals of differences are Student's over the tasks, each counted once; p is the sign "
        "test's. The tasks of one model share its weights, so they say less than as many models "
        "would. The best of the others is chosen by these very numbers, which favours it. "
        "`prediction` is attribution patching from the mean: it counts among the others here, and "
        "a rival without it is named too.",
        "**How it is measured.** Every method ranks all neurons (`mlp.hook_post`, last prompt "
        f"token) on {most('n_explore')} examples at most; methods of association by the class of "
        "the answer where there are two, else by whether the logit difference is above its median; "
        "methods of gradients by the logit difference. All that some method names is mean-ablated "
        f"one by one on {most('n_intervene')} examples at most, of other groups, one a group. "
        "*Causal hit*: its 95 % interval lies beyond δ (1 % of the clean mean, or the 95th "
        "percentile of the layer's random neurons where larger) and rank p <= .05 among these ("
        + ", ".join(f"{MODELS.get(name, name)}: {n}" for name, n in sorted(controls))
        + "). *Skill hit*: its share of the clean metric is beyond chance larger than its share of "
        "each contrast's (two other tasks and neutral text, on groups that no method ranked with; "
        "`skill_tests`). *supports*: without it the model does worse. `specific` and "
        "`specific_exact` rank with the other half of the same contrasts. The oracle: the neurons "
        f"that gradients put among the first {ran[0]['screen']:.1%}, and a random sample. Seed 0 "
        "throughout; one split.",
        "**When it was read.** The tasks were listed before the first run; of the list three were "
        "not run on Qwen2.5-Coder, for time: antonyms, comparatives, pronouns. These numbers were "
        "read once before, at 20 judged tasks (`prediction` against `taylor` at 10: 1.67 times, "
        "+0.70 [-0.05, +1.45] a task), and four tasks of the list followed (past_tense, nounpp, "
        "ioi and greater_than on Qwen2.5-Coder): an interval read twice leaves 0 out somewhat too "
        "often.",
        "Not tried here, since they take long or came later: "
        + ", ".join(f"`{name}`" for name in METHODS if name not in set(board["method"])) + ".",
        "**What it does not show.** A model's skill may lie in sets, at other tokens or in heads: "
        "then no single neuron at the last token moves the metric by 1 %, and no ranking has "
        "anything to find. Few examples confirm large effects only. Recall is of a screened sweep.",
        "## Tasks",
        markdown(_tasks(every)),
        "Development tasks were looked at while the methods were made: on two of them (40 to 64 "
        "examples) confidence bounds, a layer's quantile and ratios were tried instead of plain "
        "differences, and named the same hits; the simplest were kept. Judged are the others"
        ". arithmetic-small was run twice: at first against 24 random neurons of a layer, where "
        "`specific` could not rank on 3 tasks; then as shown, with like counts"
        + ("." if not missing else f". Not run yet: {', '.join(missing)}."),
        markdown(pd.DataFrame(
            [[name, METHODS[name].about, METHODS[name].source] for name in board["method"]],
            columns=["method", "what it is", "source"],
        )),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"
