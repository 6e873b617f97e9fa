"""Only the log-odds of two answers are read without the rest of the vocabulary."""

from dataclasses import replace

import pytest

from lens_skills.activations import Metric, confidence, correct, first_token_correct, logit_diff


@pytest.mark.parametrize("metric", [confidence(), first_token_correct(), correct()])
def test_another_metric_is_not_taken_for_them(metric: Metric) -> None:
    assert logit_diff().is_log_odds
    assert replace(logit_diff(), name="mine").is_log_odds
    assert not metric.is_log_odds
