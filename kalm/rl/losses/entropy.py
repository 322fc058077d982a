"""Soft actor-critic: act well, but no more predictably than asked for.

Haarnoja et al. 2018 (arXiv:1812.05905).

Shape letters: B batch.
"""

from __future__ import annotations

from torch import Tensor


def soft_policy_loss(value: Tensor, log_probability: Tensor, temperature: Tensor) -> Tensor:
    """Prefer actions of great value, and among them those that are not always the same.

    Eq. 7 of Haarnoja et al. 2018 (arXiv:1812.05905). The temperature passes no gradient on: it has a loss of its own.

    Args:
        value: Value of a sampled action, which gradients reach the policy through, shape (B,).
        log_probability: Logarithm of its density, shape (B,), in nats.
        temperature: Worth of a nat of entropy, shape (1,), above 0.

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return temperature.detach() * log_probability - value


def temperature_loss(log_temperature: Tensor, log_probability: Tensor, target_entropy: float) -> Tensor:
    """Raise the temperature while the policy's entropy is below its target, and lower it while it is above.

    Eq. 18 of Haarnoja et al. 2018 (arXiv:1812.05905), with the logarithm of the temperature in its place as in the
    authors' code: the slope has the same sign, and does not fade where the temperature is near 0.

    Args:
        log_temperature: Shape (1,).
        log_probability: Logarithm of the density of a sampled action, shape (B,), in nats; passes no gradient on.
        target_entropy: In nats; minus the number of components of an action in the paper.

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return -log_temperature * (log_probability.detach() + target_entropy)
