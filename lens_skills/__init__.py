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
    from lens_skills.causal import Verdict as Verdict
    from lens_skills.causal import ablate as ablate
    from lens_skills.causal import audit as audit
    from lens_skills.causal import clamp as clamp
    from lens_skills.causal import damage_matrix as damage_matrix
    from lens_skills.causal import dose_response as dose_response
    from lens_skills.causal import edited as edited
    from lens_skills.causal import patch as patch
    from lens_skills.causal import prescreen as prescreen
    from lens_skills.causal import scale as scale
    from lens_skills.causal import steer as steer
    from lens_skills.causal import sweep as sweep
    from lens_skills.causal import verify as verify
    from lens_skills.circuits import Circuit as Circuit
    from lens_skills.circuits import Edge as Edge
    from lens_skills.circuits import Faithfulness as Faithfulness
    from lens_skills.circuits import Node as Node
    from lens_skills.circuits import circuit as circuit
    from lens_skills.circuits import equal_pairs as equal_pairs
    from lens_skills.circuits import faithfulness as faithfulness
    from lens_skills.diagnosis import Regulators as Regulators
    from lens_skills.diagnosis import memorisation as memorisation
    from lens_skills.diagnosis import redundancy as redundancy
    from lens_skills.diagnosis import regulators as regulators
    from lens_skills.diagnosis import sparse_probe as sparse_probe
    from lens_skills.errors import LensSkillsError as LensSkillsError
    from lens_skills.example import Example as Example
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
    from lens_skills.methods import METHODS as METHODS
    from lens_skills.methods import Comparison as Comparison
    from lens_skills.methods import Ranking as Ranking
    from lens_skills.methods import compare as compare
    from lens_skills.methods import rank as rank
    from lens_skills.models import SoftPrompt as SoftPrompt
    from lens_skills.models import as_lens as as_lens
    from lens_skills.models import load_model as load_model
    from lens_skills.models import prompted as prompted
    from lens_skills.pipeline import study as study
    from lens_skills.prompts import compare_prompts as compare_prompts
    from lens_skills.prompts import fit_prompt as fit_prompt
    from lens_skills.prompts import initial_prompt as initial_prompt
    from lens_skills.reporting import figures as figures
    from lens_skills.scoring import Scores as Scores
    from lens_skills.scoring import Selection as Selection
    from lens_skills.scoring import own_answer as own_answer
    from lens_skills.scoring import partial_r as partial_r
    from lens_skills.scoring import predictivity_over_seeds as predictivity_over_seeds
    from lens_skills.scoring import profile as profile
    from lens_skills.scoring import score as score
    from lens_skills.scoring import select as select
    from lens_skills.scoring import skill_matrix as skill_matrix
    from lens_skills.scoring import stability as stability
    from lens_skills.tasks import Task as Task
    from lens_skills.tasks import describe as describe

__version__ = "0.1.0"

# The room each public name lives in.
_HOME = {
    "Circuit": "circuits",
    "Comparison": "methods",
    "Edge": "circuits",
    "Example": "example",
    "Explanations": "explanation",
    "Faithfulness": "circuits",
    "Graded": "generation",
    "LensSkillsError": "errors",
    "METHODS": "methods",
    "Node": "circuits",
    "Ranking": "methods",
    "Regulators": "diagnosis",
    "Scores": "scoring",
    "Selection": "scoring",
    "Shortcuts": "explanation",
    "SoftPrompt": "models",
    "Task": "tasks",
    "Verdict": "causal",
    "ablate": "causal",
    "as_lens": "models",
    "audit": "causal",
    "capture": "activations",
    "capture_text": "generation",
    "circuit": "circuits",
    "clamp": "causal",
    "compare": "methods",
    "compare_prompts": "prompts",
    "confidence": "activations",
    "correct": "activations",
    "covariate": "activations",
    "damage_matrix": "causal",
    "describe": "tasks",
    "dose_response": "causal",
    "edited": "causal",
    "equal_pairs": "circuits",
    "evaluate": "activations",
    "explain": "explanation",
    "faithfulness": "circuits",
    "feature_bank": "explanation",
    "first_token_correct": "activations",
    "fit_prompt": "prompts",
    "generate": "generation",
    "grade": "generation",
    "initial_prompt": "prompts",
    "label": "activations",
    "load_model": "models",
    "logit_diff": "activations",
    "memorisation": "diagnosis",
    "own_answer": "scoring",
    "partial_r": "scoring",
    "patch": "causal",
    "predictivity_over_seeds": "scoring",
    "prescreen": "causal",
    "profile": "scoring",
    "prompted": "models",
    "rank": "methods",
    "redundancy": "diagnosis",
    "regulators": "diagnosis",
    "scale": "causal",
    "score": "scoring",
    "select": "scoring",
    "shortcuts": "explanation",
    "skill_matrix": "scoring",
    "span": "activations",
    "sparse_probe": "diagnosis",
    "stability": "scoring",
    "steer": "causal",
    "stream": "activations",
    "study": "pipeline",
    "sweep": "causal",
    "token_logits": "explanation",
    "verify": "causal",
}
# The public names that are modules themselves.
_MODULES = {"figures": "reporting.figures", "graders": "generation.graders", "tasks": "tasks"}

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
