"""Only the log-odds of two answers are read without the rest of the vocabulary."""

import pytest

from lens_skills.activations import Metric, confidence, correct, first_token_correct, logit_diff
from lens_skills.activations.forward import is_log_odds


@pytest.mark.parametrize("metric", [confidence(), first_token_correct(), correct()])
def test_another_metric_is_not_taken_for_them(metric: Metric) -> None:
    assert is_log_odds(logit_diff())
    assert not is_log_odds(metric)
