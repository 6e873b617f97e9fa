"""Soft prompts trained on a frozen model, and the controls they are compared with."""

from lens_skills.soft_prompts.compare_prompts import PromptComparison as PromptComparison
from lens_skills.soft_prompts.compare_prompts import compare_prompts as compare_prompts
from lens_skills.soft_prompts.fit_prompt import fit_prompt as fit_prompt
from lens_skills.soft_prompts.fit_prompt import initial_prompt as initial_prompt
