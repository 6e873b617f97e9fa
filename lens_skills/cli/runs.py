"""A run folder: what was asked, and the results of each step, so that the next step can go on."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lens_skills.activations import known_values, parse_metrics
from lens_skills.activations.metrics import causal_metric as usual_causal_metric
from lens_skills.cli.console import call, is_run, limited
from lens_skills.cli.feature_folders import open_dictionaries
from lens_skills.cli.steps import Step
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.file_names import check_links
from lens_skills.interventions import (
    DEFAULT_CONTROLS,
    Controls,
    Verdict,
    ablate,
    verify,
)
from lens_skills.models import SoftPrompt
from lens_skills.results import FORMAT, file_name, undamaged, writable
from lens_skills.scoring import Scores, Selection, score, select
from lens_skills.scoring.covariates import covariate_columns
from lens_skills.scoring.select import TRIED
from lens_skills.studies import TESTED, Study
from lens_skills.tasks import SPLITS, Task, open_task

_MANIFEST, _CHECKPOINT = "run.json", "explore-checkpoint"


@dataclass(frozen=True)
class RunRequest:
    """What a run was asked to do: everything needed to do it again.

    Attributes:
        task: A generator's name, or a file or folder; see `open_task`.
        columns: For table files: which columns are prompt, answer, foil, labels, group.
        model: What `load_model` opens; None is the bundled default.
        metrics: Names of the metrics.
        options: Keyword arguments of `score`.
        fractions: Shares of the explore, the confirm and the intervene split.
        seed: Of the split and all draws.
        limit: At most so many examples.
        prompt: The folder of a soft prompt; the groups it was trained on are left out.
        dtype: Of the model's weights; None is float32.
        features: Folders of dictionaries, or ``NAME=FOLDER``, whose features are read.
    """

    task: str
    metrics: tuple[str, ...]
    model: str | None = None
    implementation: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    fractions: tuple[float, ...] = (0.4, 0.2, 0.4)
    seed: int = 0
    limit: int | None = None
    prompt: str | None = None
    dtype: str | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A folder with a request and its results."""

    folder: Path
    request: RunRequest

    @classmethod
    def create(
        cls,
        folder: str | Path,
        request: RunRequest,
        *,
        command: str = "",
        written: bool = True,
    ) -> "Run":
        """A new run folder; ``command`` is what made it, as it is typed.

        With ``written=False`` nothing is written, and only what would be refused is refused.

        Raises:
            LensSkillsError: The folder holds results of another run, or cannot be written; two
                metrics whose results would have one name.
        """
        run = cls(Path(folder), request)
        files = {file_name(metric): metric for metric in request.metrics}
        for metric in request.metrics:
            if (other := files[file_name(metric)]) != metric:
                raise LensSkillsError(
                    f"the metrics {metric!r} and {other!r} would have the same files in {folder}. "
                    "Rename a column, or score them into two folders."
                )
        # A request that came to nothing (a misspelt task) does not hold the folder.
        begun = any((run.folder / name).exists() for name in ("explore", _CHECKPOINT))
        if begun and (differs := _differences(cls.load(folder).request, request)):
            raise LensSkillsError(
                f"{folder} holds another run: {'; '.join(differs)}. Choose another folder, or "
                "remove it."
            )
        if not written:
            return run
        with writable(folder):
            run.folder.mkdir(parents=True, exist_ok=True)
            manifest = {"format": FORMAT, "command": command} | asdict(request)
            (run.folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        return run

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """The run in a folder.

        Raises:
            LensSkillsError: There is none, or one that another version wrote.
        """
        path = Path(folder) / _MANIFEST
        is_run(Path(folder))
        links = [path for path in Path(folder).rglob("*") if path.is_symlink()]
        check_links(Path(folder), links, _MANIFEST)
        try:
            plain = dict(json.loads(path.read_text(encoding="utf-8")))
            _ = plain["task"], plain["metrics"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise LensSkillsError(
                f"no run in {folder}: {path.name} cannot be read ({error!r:.100}). Make one with "
                f"`lens-skills score TASK --out {folder}`."
            ) from error
        plain.pop("command", None)
        written = plain.pop("format", None)
        if type(written) is int and written > FORMAT:
            raise LensSkillsError(
                f"{path} has format {written}; this version of lens-skills reads {FORMAT}. Update "
                "lens-skills, or score again into another folder."
            )
        try:
            if written != FORMAT:
                raise ValueError("no format" if written is None else f"format {written}")
            return cls(Path(folder), _request(plain))
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise LensSkillsError(
                f"{path} is damaged, or of another version of lens-skills ({error}; this one reads "
                f"format {FORMAT}). Score again into another folder: lens-skills score TASK --out "
                "FOLDER."
            ) from error

    def task(self) -> Task:
        """What is split, made anew from the request."""
        request = self.request
        task, soft = open_task(request.task, request.columns), self.prompt()
        if soft is not None:
            known = set(soft.provenance.get("groups", ()))

            def not_trained_on(example: Example) -> bool:
                return example.group not in known

            task = task.where(not_trained_on)
        return limited(task, request.limit, request.seed)

    def splits(self) -> tuple[Task, ...]:
        """Explore, confirm and intervene, made anew from the request."""
        shares, seed = self.request.fractions, self.request.seed
        return self.task().split(*shares, seed=seed, names=SPLITS[: len(shares)])

    def check(self) -> None:
        """Refuses before a model is opened what the task alone shows to be wrong.

        Raises:
            LensSkillsError: No such task, metric, label, covariate or dictionary.
        """
        explore = self.splits()[0]
        known_values(parse_metrics(list(self.request.metrics), explore), explore)
        covariate_columns(explore, self.request.options.get("given", ()))
        open_dictionaries(self.request.features)

    def prompt(self) -> SoftPrompt | None:
        """The soft prompt every example is read with, if there is one."""
        return None if self.request.prompt is None else SoftPrompt.load(self.request.prompt)

    def explore(self, model: Any) -> Scores:
        """Scores all neurons on the explore split and saves them; resumes where it stopped."""
        scores = call().make(
            score,
            model,
            self.splits()[0],
            metrics=list(self.request.metrics),
            seed=self.request.seed,
            checkpoint=self.folder / _CHECKPOINT,
            prompt=self.prompt(),
            **self.request.options,
        )
        scores.save(self.folder / "explore")
        return scores

    def scores(self) -> Scores:
        """The saved scores of the explore split."""
        if not (self.folder / "explore").exists():
            kept = (
                "what it had read is kept" if (self.folder / _CHECKPOINT).exists() else "nothing is"
            )
            with undamaged(self.folder, "run"):
                manifest = dict(json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8")))
            same = f": {manifest['command']}" if manifest.get("command") else "."
            raise LensSkillsError(
                f"{self.folder} holds no scores yet: the pass was stopped, and {kept}. Give the "
                f"command that began it again, in the shell{same}"
            )
        return Scores.load(self.folder / "explore")

    def confirm(
        self, model: Any, metric: str, *, fdr: float, top: int, grade: str | None = None
    ) -> Selection:
        """Tests explore's strongest neurons on the confirm split; saves what is confirmed."""
        explored = self.scores()[metric]
        options = {k: v for k, v in self.request.options.items() if k != "n_permutations"}
        confirmed = call().make(
            score,
            model,
            self.splits()[1],
            metrics=[metric],
            neurons=explored.top(top),
            seed=self.request.seed,
            prompt=self.prompt(),
            **options,
        )
        if metric in confirmed.excluded_metrics:
            raise LensSkillsError(
                f"{metric!r} cannot be confirmed: {confirmed.excluded_metrics[metric]}."
            )
        selection = select(explored, confirmed[metric], fdr=fdr, grade=grade)
        self._keep_selection(metric, confirmed, selection)
        return selection

    def _keep_selection(self, metric: str, confirmed: Scores, selection: Selection) -> None:
        confirmed.save(self.path("confirm", metric))
        selection.save(self.path("selection", metric))
        selection.evidence().to_csv(self.path("evidence", metric, ".csv"), index=False)

    def verify(
        self,
        model: Any,
        metric: str,
        *,
        causal_metric: str | None,
        delta: float | None,
        limit: int,
        most: int = TRIED,
        controls: Controls = DEFAULT_CONTROLS,
    ) -> Verdict:
        """Intervenes on the strongest of the confirmed, on the intervene split; saves the verdict.

        The evidence is written anew, with the verdict's words and the grades that follow.
        """
        selection = self.selected(metric)
        task = self.intervene_split(limit)
        verdict = call().make(
            verify,
            model,
            task,
            selection.to_try(most),
            do=ablate("mean", over=self.scores()),
            metric=chosen_metric(task, causal_metric),
            controls=controls,
            delta=delta,
            seed=self.request.seed,
            prompt=self.prompt(),
            chat=self.request.options.get("chat", False),
            checkpoint=self.path("verdict-checkpoint", metric),
        )
        self._keep_verdict(metric, selection, verdict)
        return verdict

    def _keep_verdict(self, metric: str, selection: Selection, verdict: Verdict) -> None:
        verdict.save(self.path("verdict", metric))
        verdict.frame().to_csv(self.path("verdict", metric, ".csv"), index=False)
        selection.graded(verdict).to_csv(self.path("evidence", metric, ".csv"), index=False)

    def keep(self, study: Study) -> None:
        """Saves the parts of a study as the steps of a run save them, which then go on from it."""
        study.scores.save(self.folder / "explore")
        self._keep_selection(study.metric, study.confirm_scores, study.selection)
        if study.verdict is not None:
            self._keep_verdict(study.metric, study.selection, study.verdict)
        elif (old := self.path("verdict", study.metric)).exists():  # of what is confirmed no longer
            shutil.rmtree(old)

    def exploring(self) -> Step:
        """The step that scores the explore split."""
        return Step(
            self.folder / "explore",
            "these scores",
            checkpoint=self.folder / _CHECKPOINT,
            then=f"lens-skills select {self.folder}",
        )

    def selecting(
        self, metric: str, *, fdr: float, top: int = TESTED, grade: str | None = None
    ) -> Step:
        """The step that confirms what explore found for a metric."""
        return Step(
            self.path("selection", metric),
            f"the selection for {metric}",
            {"--fdr": fdr, "--top": top, "--grade": grade},
            then=lambda: self._after_selection(metric),
        )

    def _after_selection(self, metric: str) -> str:
        some = len(Selection.load(self.path("selection", metric))) > 0
        return f"lens-skills {'verify' if some else 'explain'} {self.folder} --metric {metric}"

    def verifying(
        self,
        metric: str,
        selected: Selection,
        *,
        causal_metric: str | None,
        delta: float | None,
        limit: int,
        most: int,
        control_sets: int,
        control_neurons: int,
    ) -> Step:
        """The step that intervenes on what was confirmed for a metric."""
        return Step(
            self.path("verdict", metric),
            f"the verdict on {metric}",
            {"--causal-metric": causal_metric, "--delta": delta, "--limit": limit, "--most": most,
             "--control-sets": control_sets, "--control-neurons": control_neurons,
             "the selection": ", ".join(selected.names[:most])},
            checkpoint=self.path("verdict-checkpoint", metric),
            then=f"lens-skills explain {self.folder} --metric {metric}",
        )  # fmt: skip

    def selected(self, metric: str) -> Selection:
        """The neurons that were confirmed for a metric, one or more."""
        folder = self.path("selection", metric)
        if not folder.exists():
            raise LensSkillsError(
                f"nothing of {metric!r} was confirmed yet. Run `lens-skills select {self.folder} "
                f"--metric {metric}` first."
            )
        selection = Selection.load(folder)
        if len(selection) == 0:
            raise LensSkillsError(
                f"no neuron was confirmed for {metric!r}: there is none to verify."
            )
        return selection

    def path(self, what: str, metric: str, suffix: str = "") -> Path:
        """Where a result of one metric is kept."""
        return self.folder / (file_name(what, metric) + suffix)

    def intervene_split(self, limit: int | None) -> Task:
        """Examples of the split that is left to intervene on, at most about ``limit``."""
        if len(self.request.fractions) < 3:
            raise LensSkillsError(
                f"{self.folder} has no third split to intervene on: it was made with fractions "
                f"{self.request.fractions}. Score again in a new folder."
            )
        return limited(self.splits()[2], limit, self.request.seed)

    def as_scored(self) -> dict[str, Any]:
        """Where and by which seed the run's scores read; of a soft prompt's vectors, the last."""
        position = str(self.request.options.get("position", "last"))
        position = "last" if position == "prompt" else position
        return {"position": position, "seed": self.request.seed}

    def neurons(self, metric: str, named: Sequence[str] | None, top: int) -> Any:
        """Those named, or what is confirmed for the metric, or the strongest of explore."""
        if named:
            return list(named)
        for selection in self.selections():
            if selection.metric == metric and len(selection):
                return selection
        call().note(f"nothing of {metric!r} is confirmed: the {top} strongest of explore")
        return self.scores()[metric].top(top)

    def strongest(self, metric: str) -> str:
        """The neuron of largest effect, or where none was tried, the first of `neurons`."""
        verdict = self.verdicts().get(metric)
        if verdict is not None and verdict.singles:
            return max(verdict.singles, key=lambda ruling: abs(ruling.effect)).name
        return self.neurons(metric, None, 1).names[0]

    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts saved so far, by metric."""
        # Of the scores, not of the request: a label of several categories is several metrics.
        folders = {name: self.path("verdict", name) for name in self.scores().metrics}
        return {name: Verdict.load(path) for name, path in folders.items() if path.exists()}

    def selections(self) -> list[Selection]:
        """The selections saved so far."""
        return [Selection.load(folder) for folder in sorted(self.folder.glob("selection-*"))]


def chosen_metric(task: Task, asked: str | None) -> str:
    """The metric that effects are measured by: the one asked for, or the task's usual."""
    metric = asked or usual_causal_metric(task)
    parse_metrics(metric or (), task)
    if metric is None:
        raise LensSkillsError(
            "the task has no answers to measure effects by. Name a metric: --causal-metric."
        )
    return metric


def joined(names: Sequence[str]) -> str:
    """Names of units as a part of a file's name, which has an end.

    >>> joined(["L17N635", "L9H3"])
    'L17N635+L9H3'
    """
    text = "+".join(names)
    if len(text) <= 60:
        return text
    return f"{names[0]}+{len(names) - 1}-more-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def main_metric(metrics: Sequence[str], asked: str | None) -> str:
    """The metric asked for, or the only (first) one of the run."""
    if asked is None:
        return metrics[0]
    if asked not in metrics:
        raise LensSkillsError(
            f"this run holds no {asked!r}.{did_you_mean(asked, metrics)} "
            f"It holds: {', '.join(metrics)}."
        )
    return asked


_OPTIONS = {"at", "position", "exchange", "chat", "given", "n_permutations", "precision"}
_COLUMNS = {"prompt", "answer", "foil", "group", "kind", "labels", "covariates"}


def _request(plain: dict[str, Any]) -> RunRequest:
    """The request that a manifest holds; an error where one of its values is of another type."""
    for name in ("metrics", "fractions", "features"):
        if name in plain:
            plain[name] = tuple(plain[name])
    asked = RunRequest(**plain)
    texts = (asked.task, *asked.metrics, *asked.features)
    named = (asked.model, asked.implementation, asked.prompt, asked.dtype)
    whole = (asked.seed, 0 if asked.limit is None else asked.limit)
    for good, what in (
        (all(isinstance(text, str) for text in texts), "task, metrics and features are texts"),
        (bool(asked.metrics), "there are metrics"),
        (all(isinstance(text, str | None) for text in named), "names are texts"),
        (all(type(number) is int for number in whole), "seed and limit are whole numbers"),
        (
            1 <= len(asked.fractions) <= 3
            and all(0 < float(share) <= 1 for share in asked.fractions)
            and sum(asked.fractions) < 1.001,
            "fractions are one to three shares",
        ),
        (set(asked.options) <= _OPTIONS and set(asked.columns) <= _COLUMNS, "options are known"),
    ):
        if not good:
            raise ValueError(f"not so: {what}")
    return asked


def _differences(before: RunRequest, asked: RunRequest) -> list[str]:
    """What differs between two requests, in words; options one by one."""
    # Through JSON once, so that tuples and lists compare alike.
    old, new = (json.loads(json.dumps(asdict(one))) for one in (before, asked))
    for plain in (old, new):
        plain |= plain.pop("options")
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [f"{name} was {old.get(name)!r}, not {new.get(name)!r}" for name in names]
