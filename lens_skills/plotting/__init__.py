"""What we show: figures with the numbers they draw, made from results and never from a model."""

from lens_skills.plotting.drawing import Drawing as Drawing
from lens_skills.plotting.drawing import save as save
