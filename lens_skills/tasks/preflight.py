"""`Preflight`: what a task is to a model, before any neuron is looked at."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from lens_skills.stats.calibration import Calibration


@dataclass(frozen=True)
class Competence:
    """One way to ask whether the model can do the task, against what needs no skill.

    Attributes:
        name: What counts as a success.
        rate: Share of successes, 0 to 1.
        low, high: Its 95 % Wilson interval.
        chance: What guessing or the best trivial rule reaches.
        rule: Which rule that is.
    """

    name: str
    rate: float
    low: float
    high: float
    chance: float
    rule: str

    @property
    def above_chance(self) -> bool:
        """Whether the whole interval lies above what needs no skill."""
        return self.low > self.chance


@dataclass(frozen=True, eq=False)
class Preflight:
    """What a task is to a model, before any neuron is looked at.

    Attributes:
        task, model: Their names.
        n_examples, n_groups: Sizes.
        competences: Ways to succeed, the whole written answer first.
        baselines: What trivial rules would score as whole answers.
        copying: Accuracy where the answer stands in the prompt, and elsewhere (None where one of
            them has no examples).
        predicted: For each metric, how well the covariates alone predict it on held-out groups:
            AUROC for 0/1 metrics (0.5 is nothing), R² for others (0 is nothing or worse).
        saturated: For each probability, the share of examples above 0.99 or below 0.0001.
        constant: Metrics that take one value only.
        binary: The metrics that are 0 or 1 in every example.
        chance_r: About the largest |r| that chance reaches among all MLP neurons at this size.
        calibration: Confidence in the first token against its being right.
    """

    task: str
    model: str
    n_examples: int
    n_groups: int
    competences: tuple[Competence, ...]
    baselines: dict[str, float]
    copying: dict[str, float | None]
    predicted: dict[str, float]
    saturated: dict[str, float]
    constant: tuple[str, ...]
    binary: tuple[str, ...]
    chance_r: float
    calibration: Calibration | None

    @property
    def skill(self) -> bool | None:
        """Whether any competence lies above chance; None where the task has no answers."""
        if not self.competences:
            return None
        return any(competence.above_chance for competence in self.competences)

    def frame(self) -> pd.DataFrame:
        """One row per competence: name rate low high chance rule above_chance."""
        rows = [asdict(c) | {"above_chance": c.above_chance} for c in self.competences]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        lines = [
            f"{self.task} on {self.model}: {self.n_examples:,} examples, {self.n_groups:,} groups"
        ]
        for c in self.competences:
            verdict = "above chance" if c.above_chance else "not above chance"
            lines.append(
                f"  {c.name:<22} {c.rate:4.0%} [{c.low:.0%}, {c.high:.0%}]  "
                f"chance {c.chance:.0%} ({c.rule}): {verdict}"
            )
        if self.skill is False:
            lines.append("  no skill to explain: correct answers here are no better than a guess")
        inside, outside = self.copying.get("inside"), self.copying.get("outside")
        if inside is not None and outside is not None:
            lines.append(
                f"  correct where the answer stands in the prompt {inside:.0%}, elsewhere "
                f"{outside:.0%}" + (": mostly copying" if inside > 3 * outside else "")
            )
        for name, quality in self.predicted.items():
            measure = "AUROC" if name in self.binary else "R²"
            lines.append(f"  other columns alone predict {name}: {measure} {quality:.2f}")
        for name, share in self.saturated.items():
            if share > 0.2:
                lines.append(f"  {name} is saturated in {share:.0%} of the examples")
        for name in self.constant:
            lines.append(f"  {name} takes one value only: nothing can correlate with it")
        if self.calibration is not None:
            lines.append(
                f"  calibration error of the first-token confidence {self.calibration.error:.2f}"
            )
        lines.append(f"  chance alone reaches |r| ≈ {self.chance_r:.2f} among all MLP neurons")
        return "\n".join(lines)

    def save(self, path: str | Path) -> Path:
        """Writes the numbers as JSON."""
        plain = {k: v for k, v in vars(self).items() if k not in ("competences", "calibration")}
        plain["competences"] = self.frame().to_dict(orient="records")
        plain["skill"] = self.skill
        plain["calibration_error"] = None if self.calibration is None else self.calibration.error
        Path(path).write_text(json.dumps(plain, indent=1))
        return Path(path)
