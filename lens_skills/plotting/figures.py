"""The figures, one function each: a result in, a `Drawing` out that is saved with its numbers.

>>> from lens_skills import figures
>>> drawing = figures.attrition({"neurons": 46_080, "associated": 715, "confirmed": 4})
>>> drawing.frame["count"].tolist()
[46080, 715, 4]
"""

from lens_skills.plotting.activation_plots import activation_by_class as activation_by_class
from lens_skills.plotting.activation_plots import activation_scatter as activation_scatter
from lens_skills.plotting.attrition_plot import attrition as attrition
from lens_skills.plotting.circuit_plots import circuit_graph as circuit_graph
from lens_skills.plotting.competition_plots import dissection as dissection
from lens_skills.plotting.competition_plots import read_outs as read_outs
from lens_skills.plotting.confidence_plots import (
    confidence_against_correctness as confidence_against_correctness,
)
from lens_skills.plotting.confidence_plots import reliability as reliability
from lens_skills.plotting.cost_plot import cost_curves as cost_curves
from lens_skills.plotting.curves_plot import number_curves as number_curves
from lens_skills.plotting.description_plot import description_scores as description_scores
from lens_skills.plotting.diagnostic_plots import confidence_regulation as confidence_regulation
from lens_skills.plotting.diagnostic_plots import memorisation as memorisation
from lens_skills.plotting.diagnostic_plots import minimal_set as minimal_set
from lens_skills.plotting.diagnostic_plots import redundancy as redundancy
from lens_skills.plotting.diagnostic_plots import sparse_probe as sparse_probe
from lens_skills.plotting.drawing import Drawing as Drawing
from lens_skills.plotting.drawing import redraw as redraw
from lens_skills.plotting.drawing import save as save
from lens_skills.plotting.effect_vs_r_plot import effect_against_r as effect_against_r
from lens_skills.plotting.explanation_plots import activation_map as activation_map
from lens_skills.plotting.explanation_plots import feature_matrix as feature_matrix
from lens_skills.plotting.explanation_plots import shortcut_effects as shortcut_effects
from lens_skills.plotting.faithfulness_plot import faithfulness as faithfulness
from lens_skills.plotting.finetuning_plots import accuracy_matrices as accuracy_matrices
from lens_skills.plotting.finetuning_plots import forgetting as forgetting
from lens_skills.plotting.intervention_plots import dose_response as dose_response
from lens_skills.plotting.intervention_plots import (
    effect_against_controls as effect_against_controls,
)
from lens_skills.plotting.intervention_plots import effect_forest as effect_forest
from lens_skills.plotting.neuron_circuit_plot import neuron_circuits as neuron_circuits
from lens_skills.plotting.paired_plot import paired_intervals as paired_intervals
from lens_skills.plotting.prompt_comparison_plot import compare_scores as compare_scores
from lens_skills.plotting.ranking_plots import leaderboard as leaderboard
from lens_skills.plotting.ranking_plots import method_comparison as method_comparison
from lens_skills.plotting.result_figures import of as of
from lens_skills.plotting.scaling_plot import scaling_curve as scaling_curve
from lens_skills.plotting.scoring_plots import correlation_by_position as correlation_by_position
from lens_skills.plotting.scoring_plots import layer_profile as layer_profile
from lens_skills.plotting.scoring_plots import r_distribution as r_distribution
from lens_skills.plotting.segmentation_plot import segmentation as segmentation
from lens_skills.plotting.skill_plots import damage_matrix as damage_matrix
from lens_skills.plotting.skill_plots import metric_heatmap as metric_heatmap
from lens_skills.plotting.skill_plots import skill_matrix as skill_matrix
from lens_skills.plotting.soft_prompt_plots import learning_curves as learning_curves
from lens_skills.plotting.stability_plot import stability as stability
