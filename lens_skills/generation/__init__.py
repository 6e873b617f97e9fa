"""WHAT IT WRITES: texts a model generates, its confidence in them, and what graders find."""

from lens_skills.generation.graded import Graded as Graded
from lens_skills.generation.grading import grade as grade
from lens_skills.generation.reading import capture_text as capture_text
from lens_skills.generation.texts import generate as generate
