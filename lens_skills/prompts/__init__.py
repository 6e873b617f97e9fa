"""WHAT WE TRAIN: soft prompts on a frozen model, and what they are to be held against."""

from lens_skills.prompts.beginning import initial_prompt as initial_prompt
from lens_skills.prompts.comparison import PromptComparison as PromptComparison
from lens_skills.prompts.comparison import compare_prompts as compare_prompts
from lens_skills.prompts.fitting import fit_prompt as fit_prompt
