"""Any language model, and the one adapter through which every other room reads it.

The only room that knows TransformerLens and transformers; both are imported where they are used,
so that importing this room stays cheap.
"""

from lens_skills.models.adapter import EditHook as EditHook
from lens_skills.models.adapter import ModelAdapter as ModelAdapter
from lens_skills.models.adapter import ReadHook as ReadHook
from lens_skills.models.adapter import keep_activation as keep_activation
from lens_skills.models.backends import as_adapter as as_adapter
from lens_skills.models.backends import with_soft_prompt as with_soft_prompt
from lens_skills.models.chat_template import Chat as Chat
from lens_skills.models.dictionaries import Dictionary as Dictionary
from lens_skills.models.dictionary_folders import load_dictionary as load_dictionary
from lens_skills.models.feature_points import with_features as with_features
from lens_skills.models.load import Openable as Openable
from lens_skills.models.load import describe_openable as describe_openable
from lens_skills.models.load import load_model as load_model
from lens_skills.models.soft_prompt import SoftPrompt as SoftPrompt
