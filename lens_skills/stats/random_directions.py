"""Is the neuron basis special? Each neuron's r among random directions of its own layer.

On standardised activations: a random direction of raw ones is mostly its layer's few loudest
neurons, and says how they correlate.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

# Below so many directions that reach a neuron's r, its p is read off a fitted Beta distribution.
_COUNTED = 20


def among_directions(
    r: Float[Tensor, "layer unit"], directions: Float[Tensor, "layer direction"]
) -> tuple[Float[Tensor, "layer unit"], Float[Tensor, "layer unit"]]:
    """How far each |r| exceeds that of its own layer's random directions, and its p among them.

    Args:
        r: Of every neuron of each layer, in [-1, 1].
        directions: r of random unit directions of the same layer's standardised activations.

    Returns:
        The *excess*, |r| over the root mean square of the directions' r (0 where they have none),
        and p = (1 + #{|r_d| >= |r|}) / (1 + S). Where fewer than 20 directions reach it, p is the
        tail of a Beta distribution with the mean and variance of r_d², at most 21 / (1 + S).

    r_d² is exactly Beta distributed where the neurons of a layer are uncorrelated and alike; else
    its fit. Does not show: that a neuron matters, or even that it is unusual where a whole layer
    carries a metric: a strong neuron is then hardly told from a lucky direction.

    Source: Gurnee et al. 2024 (arXiv 2401.12181) for the comparison with a rotated basis.

    >>> some = torch.linspace(0.001, 0.1, 100)[None]
    >>> excess, p = among_directions(torch.tensor([[0.9, 0.05]]), some)
    >>> bool(excess[0, 0] > 10), bool(p[0, 0] < 1e-6), round(p[0, 1].item(), 2)
    (True, True, 0.51)
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import beta

    strength, null = r.double().abs(), directions.double().abs()
    n = null.shape[1]
    ordered = null.sort(dim=1).values.contiguous()
    reached = n - torch.searchsorted(ordered, (strength * (1 - 1e-9)).contiguous())
    p = (1 + reached).double() / (1 + n)
    square = null.square()
    mean, spread = square.mean(1), square.var(1, correction=0)
    size = mean.sqrt()[:, None]
    excess = torch.where(size > 0, strength / size.clamp(min=1e-300), 0.0)
    total = mean * (1 - mean) / spread.clamp(min=1e-300) - 1
    fits = (mean > 0) & (spread > 0) & (total > 0)
    few = (reached < _COUNTED) & rearrange(fits, "layer -> layer 1")
    layer, unit = few.nonzero(as_tuple=True)
    a, b = (mean * total)[layer], ((1 - mean) * total)[layer]
    tail = beta.sf(strength[layer, unit].square().numpy(), a.numpy(), b.numpy())
    p[layer, unit] = torch.as_tensor(tail).clamp(max=(1 + _COUNTED) / (1 + n))
    return excess, p.clamp(max=1.0)
