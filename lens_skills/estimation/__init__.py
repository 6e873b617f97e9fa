"""WHAT IT WILL TAKE: time, memory and disk of a call, measured on small runs of it."""

from lens_skills.estimation.estimate import VERBS as VERBS
from lens_skills.estimation.estimate import estimate as estimate
from lens_skills.estimation.estimates import Estimate as Estimate
