"""Which neurons: a pass over examples, its three nulls, and the selection that survives them."""

from lens_skills.scoring.display import EXPLORATORY as EXPLORATORY
from lens_skills.scoring.gates import GATES as GATES
from lens_skills.scoring.gates import Thresholds as Thresholds
from lens_skills.scoring.scan import score as score
from lens_skills.scoring.scores import MetricScores as MetricScores
from lens_skills.scoring.scores import Scores as Scores
from lens_skills.scoring.selection import Selection as Selection
from lens_skills.scoring.selection import select as select
from lens_skills.scoring.units import parse_neurons as parse_neurons
