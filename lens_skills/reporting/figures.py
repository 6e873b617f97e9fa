"""The figures, one function each: a result in, a `Drawing` out that is saved with its numbers.

>>> from lens_skills import figures
>>> drawing = figures.attrition({"neurons": 46_080, "associated": 715, "confirmed": 4})
>>> drawing.frame["count"].tolist()
[46080, 715, 4]
"""

from lens_skills.reporting.activation import activation_scatter as activation_scatter
from lens_skills.reporting.against_controls import (
    effect_against_controls as effect_against_controls,
)
from lens_skills.reporting.against_r import effect_against_r as effect_against_r
from lens_skills.reporting.by_class import activation_by_class as activation_by_class
from lens_skills.reporting.by_position import correlation_by_position as correlation_by_position
from lens_skills.reporting.certainty import (
    confidence_against_correctness as confidence_against_correctness,
)
from lens_skills.reporting.correlations import r_distribution as r_distribution
from lens_skills.reporting.curves import learning_curves as learning_curves
from lens_skills.reporting.damage import damage_matrix as damage_matrix
from lens_skills.reporting.dose import dose_response as dose_response
from lens_skills.reporting.drawing import Drawing as Drawing
from lens_skills.reporting.drawing import save as save
from lens_skills.reporting.forest import effect_forest as effect_forest
from lens_skills.reporting.funnel import attrition as attrition
from lens_skills.reporting.heatmap import metric_heatmap as metric_heatmap
from lens_skills.reporting.layers import layer_profile as layer_profile
from lens_skills.reporting.seeds import stability as stability
from lens_skills.reporting.skills import skill_matrix as skill_matrix
from lens_skills.reporting.trust import reliability as reliability
