"""EVERY WAY OF RANKING NEURONS, side by side: which of them find neurons that matter."""

from lens_skills.methods.catalogue import METHODS as METHODS
from lens_skills.methods.comparing import compare as compare
from lens_skills.methods.comparison import Comparison as Comparison
from lens_skills.methods.method import Method as Method
from lens_skills.methods.ranker import rank as rank
from lens_skills.methods.ranking import Ranking as Ranking
