"""WOULD IT COME BACK: any analysis on halves of the groups, or in other words."""

from lens_skills.resampling.repeated_findings import Stability as Stability
from lens_skills.resampling.stability import stability as stability
