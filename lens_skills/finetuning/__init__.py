"""Training chosen neurons alone, on one task or on several in turn."""

from lens_skills.finetuning.continual import continual as continual
from lens_skills.finetuning.finetune import FineTuned as FineTuned
from lens_skills.finetuning.finetune import finetune as finetune
from lens_skills.finetuning.forgetting import Continual as Continual
