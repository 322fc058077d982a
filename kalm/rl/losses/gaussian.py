"""Normal distributions with independent components: how likely a vector is, and how far one lies from another.

Shape letters: B batch, D components.
"""

from __future__ import annotations

import math

from torch import Tensor


def gaussian_log_probability(values: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Logarithm of the density of ``values`` under independent normal distributions.

    Args:
        values: Where, shape (..., D).
        mean: Shape (..., D).
        log_deviation: Logarithm of the standard deviation, of a shape that broadcasts to (..., D).

    Returns:
        Sum over the components, shape (...), in nats, not reduced over the batch.
    """
    scaled = (values - mean) * (-log_deviation).exp()
    return (-0.5 * scaled.square() - log_deviation - 0.5 * math.log(2 * math.pi)).sum(-1)


def standard_normal_divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Keep codes where they are drawn from later: the divergence of a normal distribution from the standard normal.

    Kullback-Leibler, as in the evidence bound of a variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114,
    appendix B); 0 only for the standard normal itself.

    Args:
        mean: Shape (B, D).
        log_deviation: Logarithm of the standard deviation, shape (B, D).

    Returns:
        Mean over the components, shape (B,), in nats, never negative, not reduced over the batch.
    """
    variance = (2 * log_deviation).exp()
    return 0.5 * (mean.square() + variance - 1 - 2 * log_deviation).mean(-1)
