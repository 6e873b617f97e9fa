"""The options and arguments that several commands of the shell have, each described once."""

from pathlib import Path
from typing import Annotated

import typer

# What is scored.
TaskName = Annotated[
    str,
    typer.Argument(
        help="agreement, ioi, arithmetic[:OPS:DIGITS], a BIG-bench JSON file or folder, or a "
        "CSV/TSV/JSONL/Parquet file (then say --text).",
    ),
]
ResultsFolder = Annotated[
    Path,
    typer.Argument(help="A run folder, what `demo` wrote, or any folder of saved results."),
]
Out = Annotated[Path, typer.Option(help="The run folder to write.")]
At = Annotated[
    str | None,
    typer.Option(help="Hook point within a block (default mlp.hook_post, or the --features)."),
]
Features = Annotated[
    list[str] | None,
    typer.Option(
        help="The folder of an SAE or transcoder, whose features are read like neurons (may "
        "repeat; NAME=FOLDER gives a second one of a block a name of its own)."
    ),
]
Given = Annotated[
    list[str] | None, typer.Option(help="Column to partial out (repeat for several).")
]
Exchange = Annotated[
    str, typer.Option(help="auto, within, kinds, between, free or signs: what trades places.")
]
Permutations = Annotated[
    int | None, typer.Option(min=1, help="Draws of the null (default 100 for a whole model).")
]
Fdr = Annotated[float, typer.Option(min=0, max=1, help="Expected share of false discoveries.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most so many examples.")]
Chat = Annotated[bool, typer.Option(help="Apply the tokenizer's chat template.")]
Precision = Annotated[
    str | None,
    typer.Option(help="bfloat16: rounded products, faster where the machine has them."),
]
Seed = Annotated[int, typer.Option(help="Seed of the split and of all random draws.")]
Soft = Annotated[
    Path | None, typer.Option(help="A soft prompt's folder, written by `lens-skills prompt`.")
]

# What is asked of a run.
Folder = Annotated[
    Path, typer.Argument(help="A run folder written by `lens-skills score` or `study`.")
]
Metric = Annotated[str | None, typer.Option(help="Which metric (default: the run's first).")]
Neurons = Annotated[
    list[str] | None,
    typer.Option(help="L17N635 (may repeat). Default: the confirmed ones, else the top."),
]
Top = Annotated[int, typer.Option(min=1, help="How many of explore, where none is confirmed.")]
ThirdSplit = Annotated[
    int, typer.Option(min=1, help="Use at most so many examples of the third split.")
]

# How effects are measured.
CausalMetric = Annotated[
    str | None,
    typer.Option(
        help="What effects are measured by (default logit_diff, else answer_probability)."
    ),
]
Delta = Annotated[
    float | None, typer.Option(min=0, help="The smallest effect that matters, in that unit.")
]
Intervene = Annotated[int, typer.Option(min=1, help="Examples to intervene on.")]
Most = Annotated[int, typer.Option(min=1, help="How many of the selected neurons to try.")]
ControlSets = Annotated[
    int, typer.Option(min=0, help="Matched sets that all neurons together are compared with.")
]
ControlNeurons = Annotated[
    int, typer.Option(min=1, help="Neurons of its layer that each one is compared with.")
]
