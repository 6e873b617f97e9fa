"""WHAT THEY DO: interventions on neurons, heads and MLPs, their effects, and the verdict."""

from lens_skills.causal.claims import Audit as Audit
from lens_skills.causal.claims import audit as audit
from lens_skills.causal.court import verify as verify
from lens_skills.causal.curve import DoseResponse as DoseResponse
from lens_skills.causal.damage import damage_matrix as damage_matrix
from lens_skills.causal.dose import dose_response as dose_response
from lens_skills.causal.edits import Edit as Edit
from lens_skills.causal.edits import ablate as ablate
from lens_skills.causal.edits import clamp as clamp
from lens_skills.causal.edits import patch as patch
from lens_skills.causal.edits import scale as scale
from lens_skills.causal.edits import steer as steer
from lens_skills.causal.effects import Effects as Effects
from lens_skills.causal.hooks import edited as edited
from lens_skills.causal.matrix import DamageMatrix as DamageMatrix
from lens_skills.causal.measurement import measure_effects as measure_effects
from lens_skills.causal.ruling import WORDS as WORDS
from lens_skills.causal.ruling import Ruling as Ruling
from lens_skills.causal.screening import Prescreen as Prescreen
from lens_skills.causal.screening import prescreen as prescreen
from lens_skills.causal.sweeping import sweep as sweep
from lens_skills.causal.units import Unit as Unit
from lens_skills.causal.units import parse_units as parse_units
from lens_skills.causal.verdict import Verdict as Verdict
