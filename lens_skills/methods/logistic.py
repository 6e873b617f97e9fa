"""L1 logistic regression: the few neurons of a layer that together tell two classes apart."""

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import TWO, Method
from lens_skills.methods.values import Values

PENALTY = 0.02
"""Of Σ |w|, for each example's mean loss in nats: at about 0.5 a coin's probe is empty."""


def l1_coefficients(values: Values) -> Float[Tensor, " unit"]:
    """Coefficients of the layer's probe on standardised activations; NaN where it chose none.

    argmin over w, b of mean log-loss + `PENALTY` Σ |w|, one probe for each layer: a neuron's
    coefficient says what it adds to the others of its layer.

    Does not show: that a neuron without a coefficient knows nothing; its twin may have it.
    """
    from sklearn.linear_model import LogisticRegression

    rows = values.activations.double().numpy()
    kept = ~values.constant.numpy()
    if not kept.any():
        return torch.full((rows.shape[1],), torch.nan, dtype=torch.float64)
    standard = (rows - rows.mean(0))[:, kept] / rows.std(0)[kept]
    options: dict[str, Any] = {"penalty": "l1"}
    if LogisticRegression().penalty == "deprecated":  # scikit-learn 1.8 renamed it
        options = {"l1_ratio": 1.0}
    probe = LogisticRegression(
        **options,
        solver="liblinear",
        C=1 / (PENALTY * len(rows)),
        intercept_scaling=100,  # liblinear penalises the intercept too; so, hardly
        tol=1e-6,
        max_iter=1000,
        random_state=values.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left to converge is below the test's 1e-3
        probe.fit(standard, values.target.codes.numpy())
    found = np.full(rows.shape[1], np.nan)
    found[kept] = np.where(probe.coef_[0] == 0, np.nan, probe.coef_[0])
    return torch.from_numpy(found)


L1 = Method(
    name="l1",
    of=l1_coefficients,
    about="coefficient in its layer's sparse logistic probe; most neurons have none",
    source="Tibshirani 1996 (L1); of neurons: arXiv 2305.01610 (scikit-learn's liblinear)",
    takes=TWO,
    reads="values",
    unit="log-odds per standard deviation",
    signed=True,
)
