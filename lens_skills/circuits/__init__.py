"""THROUGH WHAT IT ACTS: edges between parts of the model, each confirmed by exact path patching."""

from lens_skills.circuits.discovery import PROPOSALS as PROPOSALS
from lens_skills.circuits.discovery import circuit as circuit
from lens_skills.circuits.faithfulness import Curve as Curve
from lens_skills.circuits.faithfulness import Faithfulness as Faithfulness
from lens_skills.circuits.faithfulness import faithfulness as faithfulness
from lens_skills.circuits.graph import Circuit as Circuit
from lens_skills.circuits.graph import Edge as Edge
from lens_skills.circuits.graph import Node as Node
from lens_skills.circuits.graph import Totals as Totals
from lens_skills.circuits.paired_cache import equal_length_pairs as equal_length_pairs
from lens_skills.circuits.whole_graph import GraphAreas as GraphAreas
