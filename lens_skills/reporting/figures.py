"""The figures, one function each: a result in, a `Drawing` out that is saved with its numbers.

>>> from lens_skills import figures
>>> drawing = figures.attrition({"neurons": 46_080, "associated": 715, "confirmed": 4})
>>> drawing.frame["count"].tolist()
[46080, 715, 4]
"""

from lens_skills.reporting.activation import activation_scatter as activation_scatter
from lens_skills.reporting.activation_map import activation_map as activation_map
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
from lens_skills.reporting.dendrogram import redundancy as redundancy
from lens_skills.reporting.dose import dose_response as dose_response
from lens_skills.reporting.drawing import Drawing as Drawing
from lens_skills.reporting.drawing import save as save
from lens_skills.reporting.feature_matrix import feature_matrix as feature_matrix
from lens_skills.reporting.forest import effect_forest as effect_forest
from lens_skills.reporting.funnel import attrition as attrition
from lens_skills.reporting.graph import circuit_graph as circuit_graph
from lens_skills.reporting.heatmap import metric_heatmap as metric_heatmap
from lens_skills.reporting.layers import layer_profile as layer_profile
from lens_skills.reporting.method_comparison import method_comparison as method_comparison
from lens_skills.reporting.probe_curve import sparse_probe as sparse_probe
from lens_skills.reporting.recovery import faithfulness as faithfulness
from lens_skills.reporting.regulation import confidence_regulation as confidence_regulation
from lens_skills.reporting.seeds import stability as stability
from lens_skills.reporting.shortcut_effects import shortcut_effects as shortcut_effects
from lens_skills.reporting.skills import skill_matrix as skill_matrix
from lens_skills.reporting.trust import reliability as reliability
