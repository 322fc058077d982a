"""How actions are drawn in evaluation: by what decides an episode, its seeds and its step, and nothing else.

Shape letters: B rows, A actions, Z numbers for each row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def draw_actions(logits: Tensor, luck: NDArray[np.float64], temperature: float) -> Tensor:
    """Draw from the softmax of logits over a temperature, by adding Gumbel's noise to them; at 0 the likeliest.

    Args:
        logits: Shape (B, A).
        luck: Uniform numbers in (0, 1), shape (B, A).
        temperature: 0 or more.

    Returns:
        Actions, int64 of shape (B,).
    """
    noise = -torch.from_numpy(luck).log().neg().log()
    return (logits.double() + temperature * noise).argmax(dim=-1)


def uniform_numbers(
    seed: int, episodes: NDArray[np.uint64], steps: NDArray[np.uint64], size: int
) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1) for a step of each of B episodes: a function of seed, episode, step and place alone.

    A counter is scrambled (splitmix64: Steele et al. 2014) once a number that decides, for no generator has to be made.

    Args:
        seed: Of the run.
        episodes: Seed of each episode, shape (B,).
        steps: Number of its step, shape (B,).
        size: Numbers for each, Z.

    Returns:
        Shape (B, Z).
    """
    with np.errstate(over="ignore"):
        state = _scramble(_scramble(_scramble(np.uint64(seed)) ^ episodes) ^ steps)
        words = _scramble(state[:, None] ^ np.arange(1, size + 1, dtype=np.uint64))
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _scramble(words: Any) -> Any:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
