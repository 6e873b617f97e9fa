"""WHAT KIND OF NEURON: confidence diagnostics, redundancy, sparse probes, memorisation."""

from lens_skills.diagnosis.clusters import Redundancy as Redundancy
from lens_skills.diagnosis.clusters import redundancy as redundancy
from lens_skills.diagnosis.kinds import Regulators as Regulators
from lens_skills.diagnosis.memory import Memorisation as Memorisation
from lens_skills.diagnosis.memory import memorisation as memorisation
from lens_skills.diagnosis.probe import SparseProbe as SparseProbe
from lens_skills.diagnosis.probing import sparse_probe as sparse_probe
from lens_skills.diagnosis.regulation import regulators as regulators
