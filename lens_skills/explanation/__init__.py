"""WHY IT FIRES: which features of the input drive a neuron, what it writes, and shortcuts."""

from lens_skills.explanation.bank import FeatureBank as FeatureBank
from lens_skills.explanation.bank import feature_bank as feature_bank
from lens_skills.explanation.explaining import explain as explain
from lens_skills.explanation.explanation import Explanation as Explanation
from lens_skills.explanation.explanations import Explanations as Explanations
from lens_skills.explanation.feature import Feature as Feature
from lens_skills.explanation.report import Shortcuts as Shortcuts
from lens_skills.explanation.shortcut import Shortcut as Shortcut
from lens_skills.explanation.tracing import shortcuts as shortcuts
from lens_skills.explanation.vocabulary import TokenLogits as TokenLogits
from lens_skills.explanation.vocabulary import token_logits as token_logits
