"""WHAT THEY DO: interventions on neurons, heads and MLPs, their effects, and the verdict."""

from lens_skills.interventions.attribution import Prescreen as Prescreen
from lens_skills.interventions.attribution import prescreen as prescreen
from lens_skills.interventions.audit import Audit as Audit
from lens_skills.interventions.audit import audit as audit
from lens_skills.interventions.control_neurons import DEFAULT_CONTROLS as DEFAULT_CONTROLS
from lens_skills.interventions.control_neurons import Controls as Controls
from lens_skills.interventions.control_neurons import controls as controls
from lens_skills.interventions.damage_matrix import DamageMatrix as DamageMatrix
from lens_skills.interventions.damage_matrix import damage_matrix as damage_matrix
from lens_skills.interventions.dose_response import DoseResponse as DoseResponse
from lens_skills.interventions.dose_response import dose_response as dose_response
from lens_skills.interventions.edits import Edit as Edit
from lens_skills.interventions.edits import ablate as ablate
from lens_skills.interventions.edits import clamp as clamp
from lens_skills.interventions.edits import edited as edited
from lens_skills.interventions.edits import patch as patch
from lens_skills.interventions.edits import scale as scale
from lens_skills.interventions.edits import steer as steer
from lens_skills.interventions.effects import Effects as Effects
from lens_skills.interventions.effects import measure_effects as measure_effects
from lens_skills.interventions.sweep import sweep as sweep
from lens_skills.interventions.verdict import WORDS as WORDS
from lens_skills.interventions.verdict import Ruling as Ruling
from lens_skills.interventions.verdict import Verdict as Verdict
from lens_skills.interventions.verify import verify as verify
