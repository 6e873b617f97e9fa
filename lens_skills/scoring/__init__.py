"""Which neurons: a pass over examples, its three nulls, and the selection that survives them."""

from lens_skills.scoring.display import EXPLORATORY as EXPLORATORY
from lens_skills.scoring.gates import GATES as GATES
from lens_skills.scoring.gates import Thresholds as Thresholds
from lens_skills.scoring.matrix import SkillMatrix as SkillMatrix
from lens_skills.scoring.partialling import partial_r as partial_r
from lens_skills.scoring.prediction import Predictivity as Predictivity
from lens_skills.scoring.prediction import predictivity_over_seeds as predictivity_over_seeds
from lens_skills.scoring.profiles import Profile as Profile
from lens_skills.scoring.profiles import own_answer as own_answer
from lens_skills.scoring.profiles import profile as profile
from lens_skills.scoring.scan import score as score
from lens_skills.scoring.scores import MetricScores as MetricScores
from lens_skills.scoring.scores import Scores as Scores
from lens_skills.scoring.seeds import Stability as Stability
from lens_skills.scoring.seeds import stability as stability
from lens_skills.scoring.selection import Selection as Selection
from lens_skills.scoring.selection import select as select
from lens_skills.scoring.skills import skill_matrix as skill_matrix
from lens_skills.scoring.units import parse_neurons as parse_neurons
