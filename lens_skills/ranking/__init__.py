"""EVERY WAY OF RANKING NEURONS, side by side: which of them find neurons that matter."""

from lens_skills.ranking.compare_methods import compare_methods as compare_methods
from lens_skills.ranking.method_comparison import MethodComparison as MethodComparison
from lens_skills.ranking.methods import METHODS as METHODS
from lens_skills.ranking.methods import Method as Method
from lens_skills.ranking.rank import Ranking as Ranking
from lens_skills.ranking.rank import rank as rank
from lens_skills.ranking.task_differences import differences_over_tasks as differences_over_tasks
