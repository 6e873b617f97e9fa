"""Texts a model writes, its confidence in them, and what graders find."""

from lens_skills.generation.endpoint import endpoint as endpoint
from lens_skills.generation.generate import capture_text as capture_text
from lens_skills.generation.generate import generate as generate
from lens_skills.generation.graded import Graded as Graded
from lens_skills.generation.graded import grade as grade
