"""WHAT KIND OF NEURON: regulators, redundancy, probes, memorisation, concepts, skills in text."""

from lens_skills.diagnostics.dissection import Dissection as Dissection
from lens_skills.diagnostics.dissection import dissect as dissect
from lens_skills.diagnostics.memorisation import Memorisation as Memorisation
from lens_skills.diagnostics.memorisation import memorisation as memorisation
from lens_skills.diagnostics.minimal_set import MinimalSet as MinimalSet
from lens_skills.diagnostics.minimal_set import minimal_set as minimal_set
from lens_skills.diagnostics.redundancy import Redundancy as Redundancy
from lens_skills.diagnostics.redundancy import redundancy as redundancy
from lens_skills.diagnostics.regulators import Regulators as Regulators
from lens_skills.diagnostics.regulators import confidence_regulators as confidence_regulators
from lens_skills.diagnostics.segment import Segmentation as Segmentation
from lens_skills.diagnostics.segment import segment as segment
from lens_skills.diagnostics.sparse_probe import SparseProbe as SparseProbe
from lens_skills.diagnostics.sparse_probe import sparse_probe as sparse_probe
