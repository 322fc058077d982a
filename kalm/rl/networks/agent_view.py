"""What an agent on a grid sees from where it stands: states taken apart, and the tiles around it, turned its way.

States are those of ``kalm/envs/agent_grid.py``.

Shape letters: B states, W columns, H rows, P tiles of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class AgentView:
    """A batch of states, taken apart."""

    tiles: Tensor  # codes, int64 of shape (B, W, H)
    place: Tensor  # the agent's tile, x * H + y, int64 of shape (B,)
    direction: Tensor  # in [0, 4), int64 of shape (B,)
    carried: Tensor  # code of what is in the hand, int64 of shape (B,)

    @property
    def situation(self) -> Tensor:
        """Where the agent stands, how it faces and what it carries, as one number, int64 of shape (B,)."""
        return self.place * 2**8 + self.carried * 4 + self.direction  # a mark of carried and direction has 8 bits

    def in_front(self, outside: int) -> Tensor:
        """Code of the tile that the agent faces, ``outside`` where the grid ends, int64 of shape (B,)."""
        bordered = functional.pad(self.tiles, (1, 1, 1, 1), value=outside).flatten(1)
        return bordered.gather(1, patch_places(self, 1)[:, 1:2]).squeeze(1)


def agent_view(states: Tensor) -> AgentView:
    """Take states, (B, W, H, 2), apart."""
    agent = states[..., 1].flatten(1)
    place = agent.argmax(dim=1)
    mark = agent.gather(1, place.unsqueeze(1)).squeeze(1).long() - 1
    return AgentView(states[..., 0].long(), place, mark % 4, mark // 4)


def patch_places(view: AgentView, radius: int) -> Tensor:
    """Where the tiles around the agent lie in a map with a border of ``radius``, flattened; int64 of shape (B, P).

    Row by row from the farthest ahead, in each from left to right as the agent sees it: tile p of two states is in the
    same place relative to the agent, whichever way it faces.
    """
    height = view.tiles.shape[-1]
    x, y = view.place // height + radius, view.place % height + radius
    steps = torch.arange(-radius, radius + 1, device=x.device)
    ahead = steps.flip(0).repeat_interleave(len(steps))
    right = steps.repeat(len(steps))
    # To the right of the one that faces (a, b) is (-b, a), for y grows downwards.
    a = torch.tensor([1, 0, -1, 0], device=x.device)[view.direction].unsqueeze(1)
    b = torch.tensor([0, 1, 0, -1], device=x.device)[view.direction].unsqueeze(1)
    x = x.unsqueeze(1) + a * ahead - b * right
    y = y.unsqueeze(1) + b * ahead + a * right
    return x * (height + 2 * radius) + y
