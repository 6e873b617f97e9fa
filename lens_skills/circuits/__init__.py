"""THROUGH WHAT IT ACTS: edges between parts of the model, each confirmed by exact path patching."""

from lens_skills.circuits.account import Account as Account
from lens_skills.circuits.curve import Curve as Curve
from lens_skills.circuits.curve import Faithfulness as Faithfulness
from lens_skills.circuits.edge import Edge as Edge
from lens_skills.circuits.fidelity import faithfulness as faithfulness
from lens_skills.circuits.node import Node as Node
from lens_skills.circuits.pairs import equal_pairs as equal_pairs
from lens_skills.circuits.proposals import PROPOSALS as PROPOSALS
from lens_skills.circuits.tracing import circuit as circuit
from lens_skills.circuits.wiring import Circuit as Circuit
