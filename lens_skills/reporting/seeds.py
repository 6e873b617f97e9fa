"""Whether several prompts find the same neurons: overlap, signs and ranks of every pair."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lens_skills.reporting.caption import file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    SMALL,
    settle,
    sheet,
    style,
)
from lens_skills.scoring import Stability

_ROW = 0.2  # inches of a pair


@style()
def stability(found: Stability, *, width: float = COLUMN) -> Drawing:
    """Every pair of prompts: neurons they share against chance, same signs, and rank correlation.

    Left: shared neurons among each prompt's strongest, with what random sets would share among all
    neurons, and with the same counts per layer. Right: share of significant neurons with the same
    sign, and Spearman's correlation of |r| over all neurons.

    Args:
        found: From `lens_skills.scoring.stability`.
        width: Inches.

    Frame: one row per pair, as in ``found.frame()``.
    """
    frame = found.frame()
    names = [f"{one} – {other}" for one, other in found.pairs.tolist()]
    model = str(found.provenance.get("scores", [{}])[0].get("model", "")).split(" with soft")[0]
    source = [part for part in (model, found.site, f"{found.n_units:,} neurons") if part]
    stable = (
        f"{len(found.stable):,} neurons significant with one sign under every prompt"
        if bool((found.n_significant >= 0).all())
        else "no null was drawn: significance unknown"
    )
    figure = sheet(
        width,
        max(0.9, _ROW * len(frame) + 0.3) + 0.85,
        title=f"{found.metric}: the same neurons under {found.n_prompts} prompts?",
        lines=[" · ".join(source), stable],
        note="" if found.same_examples else "Other examples per prompt: those differ too.",
        exploratory=found.exploratory,
    )
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(frame))
    left.barh(rows, frame["shared"], height=0.55, color=BLUE, alpha=0.8, label="shared")
    for column, marker, colour, words in (
        ("expected", "|", BLACK, "chance"),
        ("expected_by_layer", "D", ORANGE, "chance by layer"),
    ):
        left.plot(
            frame[column], rows, linestyle="none", marker=marker, color=colour, label=words,
            markersize=7 if marker == "|" else 3.5, markeredgewidth=1.2 if marker == "|" else 0.5,
            markeredgecolor=BLACK,
        )  # fmt: skip
    left.set_yticks(rows, names)
    left.set_ylim(len(frame) - 0.4, -0.6)
    left.set(xlabel=f"of the {found.top} strongest", ylabel="prompts", xlim=(0, None))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    _agreement(right, found, rows)
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        axis.legend(
            loc="lower left", bbox_to_anchor=(-0.04, 1.0), borderaxespad=0.1, labelspacing=0.2,
            handlelength=1.0,
        )  # fmt: skip
    settle(figure)
    return Drawing(figure, frame, file_name("stability", found.metric))


def _agreement(axis: Axes, found: Stability, rows: np.ndarray) -> None:
    told = ~found.sign_agreement.isnan().numpy()
    axis.plot(
        found.sign_agreement.numpy()[told], rows[told], linestyle="none", marker="o", color=GREEN,
        markersize=4.5, label="same sign (share)",
    )  # fmt: skip
    axis.plot(
        found.rank_r.numpy(), rows, linestyle="none", marker="s", markerfacecolor="white",
        color=BLACK, markersize=4.5, label="rank correlation",
    )  # fmt: skip
    low = min(0.0, float(np.nanmin(found.rank_r.numpy())) - 0.05)
    axis.axvline(0.5, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7)
    axis.set_xlim(low, 1.04)
    axis.set_xlabel("agreement (0.5: coin signs)", size=SMALL)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
