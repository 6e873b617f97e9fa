"""What we read: activations at a site and position, and one number per example and metric."""

from lens_skills.activations.activation_table import ActivationTable as ActivationTable
from lens_skills.activations.activation_table import capture as capture
from lens_skills.activations.forward import known_values as known_values
from lens_skills.activations.locations import DEFAULT_SITE as DEFAULT_SITE
from lens_skills.activations.locations import Position as Position
from lens_skills.activations.locations import find_site as find_site
from lens_skills.activations.locations import parse_position as parse_position
from lens_skills.activations.locations import site_names as site_names
from lens_skills.activations.locations import soft_position as soft_position
from lens_skills.activations.locations import span as span
from lens_skills.activations.metrics import Metric as Metric
from lens_skills.activations.metrics import column_values as column_values
from lens_skills.activations.metrics import confidence as confidence
from lens_skills.activations.metrics import correct as correct
from lens_skills.activations.metrics import covariate as covariate
from lens_skills.activations.metrics import first_token_correct as first_token_correct
from lens_skills.activations.metrics import label as label
from lens_skills.activations.metrics import logit_diff as logit_diff
from lens_skills.activations.metrics import model_answer as model_answer
from lens_skills.activations.metrics import parse_metric as parse_metric
from lens_skills.activations.metrics import parse_metrics as parse_metrics
from lens_skills.activations.stream import BATCH_SIZE as BATCH_SIZE
from lens_skills.activations.stream import Batch as Batch
from lens_skills.activations.stream import evaluate as evaluate
from lens_skills.activations.stream import stream as stream
