"""What we ask a model: tasks, generated or read from files.

>>> from lens_skills import tasks
>>> explore, confirm = tasks.agreement().split(0.5, 0.5, seed=0)
>>> set(explore.groups) & set(confirm.groups)
set()
"""

from lens_skills.tasks.agreement import agreement as agreement
from lens_skills.tasks.arithmetic import arithmetic as arithmetic
from lens_skills.tasks.bigbench import bigbench as bigbench
from lens_skills.tasks.code import code as code
from lens_skills.tasks.hans import hans as hans
from lens_skills.tasks.instructions import instructions as instructions
from lens_skills.tasks.ioi import ioi as ioi
from lens_skills.tasks.nli import nli as nli
from lens_skills.tasks.preflight import Preflight as Preflight
from lens_skills.tasks.preflight import preflight as preflight
from lens_skills.tasks.preflight import require_examples as require_examples
from lens_skills.tasks.pseudo_labels import PseudoLabels as PseudoLabels
from lens_skills.tasks.pseudo_labels import pseudo_label as pseudo_label
from lens_skills.tasks.registry import GENERATORS as GENERATORS
from lens_skills.tasks.registry import open_task as open_task
from lens_skills.tasks.skill_mix import Skill as Skill
from lens_skills.tasks.skill_mix import skill_mix as skill_mix
from lens_skills.tasks.splice import LabelledText as LabelledText
from lens_skills.tasks.splice import splice as splice
from lens_skills.tasks.table import pairs as pairs
from lens_skills.tasks.table import table as table
from lens_skills.tasks.task import SPLITS as SPLITS
from lens_skills.tasks.task import Task as Task
from lens_skills.tasks.task import few as few
