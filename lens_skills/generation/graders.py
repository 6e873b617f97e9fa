"""Graders: functions ``(text, example) -> {skill: number}``.

>>> from lens_skills import Example
>>> from lens_skills.generation import graders
>>> found = graders.detectors("The lake lay as flat as a mirror.", Example(id="a", prompt="Write."))
>>> [skill for skill, shown in found.items() if shown]
['simile']
"""

from lens_skills.generation.grade_files import from_file as from_file
from lens_skills.generation.llm_judge import judge as judge
from lens_skills.generation.rule_graders import detectors as detectors
