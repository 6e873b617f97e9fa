"""WHAT WE OPEN: any language model, and the one lens through which every other room reads it.

The only room that knows TransformerLens and transformers; both are imported where they are used,
so that importing this room stays cheap.
"""

from lens_skills.models.lens import as_lens as as_lens
from lens_skills.models.load import load_model as load_model
from lens_skills.models.openable import Openable as Openable
from lens_skills.models.openable import describe_openable as describe_openable
from lens_skills.models.prompted import prompted as prompted
from lens_skills.models.protocol import Editor as Editor
from lens_skills.models.protocol import Lens as Lens
from lens_skills.models.protocol import Reader as Reader
from lens_skills.models.soft_prompt import SoftPrompt as SoftPrompt
