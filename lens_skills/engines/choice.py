"""`chosen`: the engine that `lens_skills.config` asks for."""

from lens_skills import settings
from lens_skills.engines.division import Engine
from lens_skills.engines.ray_engine import RayEngine
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.models.user_hooks import watched


def chosen(adapter: ModelAdapter | None) -> Engine | None:
    """The engine that divides passes of this model; None where they run here.

    Raises:
        LensSkillsError: A table, or a model with hooks of the user's: workers have neither.
    """
    if settings.engine() == "local":
        return None
    if adapter is None:
        raise LensSkillsError(
            "engine='ray' divides passes of a model, and this is a table of activations. Read it "
            "with engine='local'; ls.score_part reads some shards on each machine."
        )
    if watched(adapter):
        raise LensSkillsError(
            f"there are hooks on {adapter.name}, and the models of engine='ray' workers have none: "
            "their numbers would be of another model. Take the hooks off, or say "
            "ls.config(engine='local')."
        )
    return RayEngine()
