"""`chosen`: the engine that `lens_skills.config` asks for."""

from lens_skills import settings
from lens_skills.engines.division import Engine
from lens_skills.engines.ray_engine import RayEngine
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.models.user_hooks import watched


def chosen(adapter: ModelAdapter | None) -> Engine | None:
    """The engine that divides passes of this model, or of a table (None); None: they run here.

    Raises:
        LensSkillsError: A model with hooks of the user's, which those of workers have not; one
            that is spread over several devices.
    """
    if settings.engine() == "local":
        return None
    if adapter is not None and watched(adapter):
        raise LensSkillsError(
            f"there are hooks on {adapter.name}, and the models of engine='ray' workers have none: "
            "their numbers would be of another model. Take the hooks off, or say "
            "ls.config(engine='local')."
        )
    if adapter is not None and adapter.spread:
        raise LensSkillsError(
            f"{adapter.name} is spread over several devices, and a worker of engine='ray' opens "
            "its model on one. Open one that fits on one GPU, or say ls.config(engine='local')."
        )
    return RayEngine()
