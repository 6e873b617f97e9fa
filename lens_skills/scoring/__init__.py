"""Which neurons: a pass over examples, its nulls, and the grades of what is confirmed."""

from lens_skills.scoring.compare_scores import ScoreComparison as ScoreComparison
from lens_skills.scoring.compare_scores import compare_scores as compare_scores
from lens_skills.scoring.correlations import partial_r as partial_r
from lens_skills.scoring.layer_profile import LayerProfile as LayerProfile
from lens_skills.scoring.layer_profile import layer_profile as layer_profile
from lens_skills.scoring.predictivity import Predictivity as Predictivity
from lens_skills.scoring.predictivity import predictivity as predictivity
from lens_skills.scoring.score import score as score
from lens_skills.scoring.score_part import PartialScores as PartialScores
from lens_skills.scoring.score_part import score_part as score_part
from lens_skills.scoring.scores import EXPLORATORY as EXPLORATORY
from lens_skills.scoring.scores import MetricScores as MetricScores
from lens_skills.scoring.scores import Scores as Scores
from lens_skills.scoring.select import Selection as Selection
from lens_skills.scoring.select import select as select
from lens_skills.scoring.skill_matrix import SkillMatrix as SkillMatrix
from lens_skills.scoring.skill_matrix import skill_matrix as skill_matrix
