"""`Study`: what every step found, and the card it prints."""

from dataclasses import dataclass
from pathlib import Path

from lens_skills.causal import Verdict
from lens_skills.scoring import EXPLORATORY, Scores, Selection
from lens_skills.tasks import Preflight, Task

# How well other columns must predict a metric (R², and AUROC where it is 0/1) to be warned of.
_EXPLAINED = {False: 0.25, True: 0.75}


@dataclass(frozen=True, eq=False)
class Study:
    """What every step found; printing it shows one card.

    Attributes:
        preflight: Whether there is a skill, and what would explain it away.
        found: Scores of all neurons on the explore split.
        checked: Scores of explore's strongest on the confirm split.
        selection: What passed every gate and was confirmed.
        metric: The metric the selection is about.
        explore, confirm, intervene: The splits, none sharing a group; the last may be missing.
        verdict: What interventions show of the confirmed neurons, on ``intervene``. None where
            there is none.
        untried: Why there is none.
    """

    preflight: Preflight
    found: Scores
    checked: Scores
    selection: Selection
    metric: str
    explore: Task
    confirm: Task
    intervene: Task | None
    verdict: Verdict | None
    untried: str = ""

    def __repr__(self) -> str:
        return "\n".join(
            [self.attrition_line(), *self._findings(), *self._court(), *self._preflight()]
        )

    def attrition_line(self) -> str:
        """``46,080 neurons → … → 3 confirmed → 1 supports · 2 no total effect beyond δ``."""
        line = self.selection.attrition_line()
        if self.verdict is None:
            return line
        words = [f"{count:,} {word}" for word, count in self.verdict.counts.items() if count]
        return f"{line} → {' · '.join(words)}"

    def _court(self) -> list[str]:
        if self.verdict is None:
            return ["", f"No verdict: {self.untried}."]
        return ["", "Verdict (on a third split)", *repr(self.verdict).splitlines()]

    def _preflight(self) -> list[str]:
        return ["", "Preflight", *repr(self.preflight).splitlines()]

    def _findings(self) -> list[str]:
        found, bars = self.found, self.found[self.metric].thresholds
        lines = [
            f"{self.metric} · {found.site} at {', '.join(found.positions)} · explore "
            f"{found.n_examples} examples in {found.n_groups} groups, confirm "
            f"{self.checked.n_examples} in {self.checked.n_groups}"
        ]
        if found.provenance["given"]:
            lines.append(f"partial r, given {', '.join(found.provenance['given'])}")
        if self.selection.exploratory:
            lines.append(EXPLORATORY)
        nulls = {
            "permutation": bars.permutation,
            "control task": bars.control,
            "rotated basis": bars.rotated,
        }
        drawn = [f"{name} {bar:.2f}" for name, bar in nulls.items() if bar is not None]
        lines.append(f"|r| to beat: {', '.join(drawn)}")
        lines += ["", *self._table(), "", self._verdict()]
        return lines

    def _table(self) -> list[str]:
        frame = self.selection.frame()
        if frame.empty:
            best = self.found[self.metric].frame().head(3)
            names = [f"L{row.layer}N{row.neuron} ({row.r:+.2f})" for row in best.itertuples()]
            return [f"no neuron passed every gate; the strongest were {', '.join(names)}"]
        shown = frame.head(10)[["name", "r_explore", "r_confirm", "p", "q"]]
        return shown.to_string(index=False, float_format=lambda x: f"{x:.3g}").splitlines()

    def _verdict(self) -> str:
        if self.preflight.skill is False:
            return (
                "no skill to explain: whatever these neurons track, the model does not do the task."
            )
        if len(self.selection) == 0:
            return "nothing to report: what correlates here, any basis or a random label matches."
        text = f"{len(self.selection)} neurons carry this metric on unseen groups. "
        if self.verdict is None:
            text += "They are correlates: whether the model uses them takes an intervention."
        else:
            text += "Whether the model uses them is for the verdict below."
        quality = self.preflight.predicted.get(self.metric, 0.0)
        if (
            not self.found.provenance["given"]
            and quality > _EXPLAINED[self.metric in self.preflight.binary]
        ):
            text += (
                f"\ncaution: the task's other columns alone predict {self.metric} "
                f"({quality:.2f}); these neurons may carry those instead. Repeat with given=[…]."
            )
        return text

    def save(self, folder: str | Path) -> Path:
        """Writes explore, confirm, selection, verdict and the preflight under one folder."""
        target = Path(folder)
        self.found.save(target / "explore")
        self.checked.save(target / "confirm")
        self.selection.save(target / "selection")
        self.preflight.save(target / "preflight.json")
        if self.verdict is not None:
            self.verdict.save(target / "verdict")
            self.verdict.frame().to_csv(target / "verdict.csv", index=False)
        (target / "card.txt").write_text(repr(self) + "\n")
        self.selection.frame().to_csv(target / "neurons.csv", index=False)
        return target
