"""A file to publish with a paper: components with their evidence, which others can check."""

from lens_skills.publishing.neuron_set import NeuronSet as NeuronSet
from lens_skills.publishing.set_check import SetCheck as SetCheck
