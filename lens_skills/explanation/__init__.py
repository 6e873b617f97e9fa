"""WHY IT FIRES: which features of the input drive a neuron, what it writes, and shortcuts."""

from lens_skills.explanation.activation_quantiles import ActivatingExamples as ActivatingExamples
from lens_skills.explanation.activation_quantiles import activating_examples as activating_examples
from lens_skills.explanation.explain import explain as explain
from lens_skills.explanation.explanations import Explanation as Explanation
from lens_skills.explanation.explanations import Explanations as Explanations
from lens_skills.explanation.feature_bank import FeatureBank as FeatureBank
from lens_skills.explanation.feature_bank import feature_bank as feature_bank
from lens_skills.explanation.features import Feature as Feature
from lens_skills.explanation.rationales import Rationales as Rationales
from lens_skills.explanation.rationales import rationales as rationales
from lens_skills.explanation.shortcut_report import Shortcut as Shortcut
from lens_skills.explanation.shortcut_report import Shortcuts as Shortcuts
from lens_skills.explanation.shortcuts import shortcuts as shortcuts
from lens_skills.explanation.token_logits import TokenLogits as TokenLogits
from lens_skills.explanation.token_logits import token_logits as token_logits
