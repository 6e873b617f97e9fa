"""Find, confirm and test the neurons of a language model that carry a skill.

A :class:`Task` (prompts, answers, labels) is split by group; a :func:`score` correlates every
neuron's activation with every metric (a label, the model's own confidence, its correctness) in one
pass and holds it against three nulls; :func:`select` keeps what a second, unseen split confirms;
:func:`verify` intervenes on a third, beside matched controls, and says what each neuron does.
:func:`study` runs all of it and prints one card, which opens with the attrition: how many neurons
there are, and how many are left after each gate.

A model is whatever TransformerLens makes: :func:`load_model` opens the bundled default, a hub name,
a folder, a GGUF file or a loaded Hugging Face model, and every verb takes a ``HookedTransformer``
or ``TransformerBridge`` of your own as it is::

    import lens_skills as ls

    model = ls.load_model()
    explore, confirm, intervene = ls.tasks.agreement().split(0.4, 0.2, 0.4, seed=0)
    metrics = {"plural": "label:plural", "sure": ls.confidence()}
    found = ls.score(model, explore, metrics=metrics)
    checked = ls.score(model, confirm, metrics=metrics, neurons=found["plural"].top(200))
    skills = ls.select(found["plural"], checked["plural"], fdr=0.05)
    print(ls.verify(model, intervene, skills, do=ls.ablate("mean", over=found)))

The names below are loaded when they are first used, so that importing the package, and asking the
shell for help, costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_skills import tasks as tasks
    from lens_skills.activations import capture as capture
    from lens_skills.activations import confidence as confidence
    from lens_skills.activations import correct as correct
    from lens_skills.activations import covariate as covariate
    from lens_skills.activations import evaluate as evaluate
    from lens_skills.activations import first_token_correct as first_token_correct
    from lens_skills.activations import label as label
    from lens_skills.activations import logit_diff as logit_diff
    from lens_skills.activations import span as span
    from lens_skills.activations import stream as stream
    from lens_skills.circuits import Circuit as Circuit
    from lens_skills.circuits import Edge as Edge
    from lens_skills.circuits import Faithfulness as Faithfulness
    from lens_skills.circuits import Node as Node
    from lens_skills.circuits import circuit as circuit
    from lens_skills.circuits import equal_length_pairs as equal_length_pairs
    from lens_skills.circuits import faithfulness as faithfulness
    from lens_skills.data import Example as Example
    from lens_skills.diagnostics import Regulators as Regulators
    from lens_skills.diagnostics import confidence_regulators as confidence_regulators
    from lens_skills.diagnostics import memorisation as memorisation
    from lens_skills.diagnostics import redundancy as redundancy
    from lens_skills.diagnostics import sparse_probe as sparse_probe
    from lens_skills.errors import LensSkillsError as LensSkillsError
    from lens_skills.explanation import Explanations as Explanations
    from lens_skills.explanation import Shortcuts as Shortcuts
    from lens_skills.explanation import explain as explain
    from lens_skills.explanation import feature_bank as feature_bank
    from lens_skills.explanation import shortcuts as shortcuts
    from lens_skills.explanation import token_logits as token_logits
    from lens_skills.generation import Graded as Graded
    from lens_skills.generation import capture_text as capture_text
    from lens_skills.generation import generate as generate
    from lens_skills.generation import grade as grade
    from lens_skills.generation import graders as graders
    from lens_skills.interventions import Verdict as Verdict
    from lens_skills.interventions import ablate as ablate
    from lens_skills.interventions import audit as audit
    from lens_skills.interventions import clamp as clamp
    from lens_skills.interventions import damage_matrix as damage_matrix
    from lens_skills.interventions import dose_response as dose_response
    from lens_skills.interventions import edited as edited
    from lens_skills.interventions import patch as patch
    from lens_skills.interventions import prescreen as prescreen
    from lens_skills.interventions import scale as scale
    from lens_skills.interventions import steer as steer
    from lens_skills.interventions import sweep as sweep
    from lens_skills.interventions import verify as verify
    from lens_skills.models import SoftPrompt as SoftPrompt
    from lens_skills.models import as_adapter as as_adapter
    from lens_skills.models import load_model as load_model
    from lens_skills.models import prompted as prompted
    from lens_skills.plotting import figures as figures
    from lens_skills.ranking import METHODS as METHODS
    from lens_skills.ranking import MethodComparison as MethodComparison
    from lens_skills.ranking import Ranking as Ranking
    from lens_skills.ranking import compare_methods as compare_methods
    from lens_skills.ranking import rank as rank
    from lens_skills.scoring import Scores as Scores
    from lens_skills.scoring import Selection as Selection
    from lens_skills.scoring import layer_profile as layer_profile
    from lens_skills.scoring import model_answer as model_answer
    from lens_skills.scoring import partial_r as partial_r
    from lens_skills.scoring import predictivity as predictivity
    from lens_skills.scoring import score as score
    from lens_skills.scoring import select as select
    from lens_skills.scoring import skill_matrix as skill_matrix
    from lens_skills.scoring import stability as stability
    from lens_skills.settings import config as config
    from lens_skills.soft_prompts import compare_prompts as compare_prompts
    from lens_skills.soft_prompts import fit_prompt as fit_prompt
    from lens_skills.soft_prompts import initial_prompt as initial_prompt
    from lens_skills.studies import study as study
    from lens_skills.tasks import Task as Task
    from lens_skills.tasks import preflight as preflight

__version__ = "0.1.0"

# The room each public name lives in.
_HOME = {
    "Circuit": "circuits",
    "Edge": "circuits",
    "Example": "data",
    "Explanations": "explanation",
    "Faithfulness": "circuits",
    "Graded": "generation",
    "LensSkillsError": "errors",
    "METHODS": "ranking",
    "MethodComparison": "ranking",
    "Node": "circuits",
    "Ranking": "ranking",
    "Regulators": "diagnostics",
    "Scores": "scoring",
    "Selection": "scoring",
    "Shortcuts": "explanation",
    "SoftPrompt": "models",
    "Task": "tasks",
    "Verdict": "interventions",
    "ablate": "interventions",
    "as_adapter": "models",
    "audit": "interventions",
    "capture": "activations",
    "capture_text": "generation",
    "circuit": "circuits",
    "clamp": "interventions",
    "compare_methods": "ranking",
    "compare_prompts": "soft_prompts",
    "confidence": "activations",
    "config": "settings",
    "confidence_regulators": "diagnostics",
    "correct": "activations",
    "covariate": "activations",
    "damage_matrix": "interventions",
    "dose_response": "interventions",
    "edited": "interventions",
    "equal_length_pairs": "circuits",
    "evaluate": "activations",
    "explain": "explanation",
    "faithfulness": "circuits",
    "feature_bank": "explanation",
    "first_token_correct": "activations",
    "fit_prompt": "soft_prompts",
    "generate": "generation",
    "grade": "generation",
    "initial_prompt": "soft_prompts",
    "label": "activations",
    "layer_profile": "scoring",
    "load_model": "models",
    "logit_diff": "activations",
    "memorisation": "diagnostics",
    "model_answer": "scoring",
    "partial_r": "scoring",
    "patch": "interventions",
    "predictivity": "scoring",
    "preflight": "tasks",
    "prescreen": "interventions",
    "prompted": "models",
    "rank": "ranking",
    "redundancy": "diagnostics",
    "scale": "interventions",
    "score": "scoring",
    "select": "scoring",
    "shortcuts": "explanation",
    "skill_matrix": "scoring",
    "span": "activations",
    "sparse_probe": "diagnostics",
    "stability": "scoring",
    "steer": "interventions",
    "stream": "activations",
    "study": "studies",
    "sweep": "interventions",
    "token_logits": "explanation",
    "verify": "interventions",
}
# The public names that are modules themselves.
_MODULES = {"figures": "plotting.figures", "graders": "generation.graders", "tasks": "tasks"}

__all__ = [*_HOME, *_MODULES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        from difflib import get_close_matches

        near = get_close_matches(name, __all__, 1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    globals()[name] = value  # the next look-up is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
