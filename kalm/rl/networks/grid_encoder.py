"""What perceptrons read of a grid: what lies where, seen from the agent, exactly near by and roughly far off.

The grid is turned the agent's way and cut into regions that grow with the distance: single tiles around the agent,
larger rectangles farther away. The rows of a table for the codes in a region are added up, and the goal says which of
their components count, so that the perceptron behind is told where things lie that are like what is wanted. Nothing is
said of which way leads there; that is what the planner student adds (``kalm/rl/distillation/planner_student.py``).

States are those of ``kalm/envs/agent_grid.py``; how many codes a world has, and which, need not be known.

Shape letters: B states, W columns, H rows, R regions, D numbers of a code, C channels, E goal embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kalm.core.errors import DataError
from kalm.core.specs import GridObservation, Spec, VectorObservation
from kalm.rl.networks.agent_view import AgentView, agent_view
from kalm.rl.networks.token_network import OnTokens, TokenEncoder

_NUM_CODES = 256  # of 8 bits
_NUM_CHANNELS = 8
_NUM_TOKEN_LAYERS = 2  # of what reads a vector and a sentence token by token
# Where bands of rows ahead of the agent, and of columns to its right, part; those behind and to its left mirror them.
_BAND_ENDS = (0.5, 1.5, 2.5, 4.5, 8.5)
_FARTHEST = 255  # on a grid whose size fits 8 bits


class GridEncoder(nn.Module):
    """Regions of a grid around its agent, and what that carries, as ``output_size`` numbers."""

    band_of: Tensor

    def __init__(self, spec: Spec, code_size: int = 16) -> None:
        """Make the table of codes.

        Args:
            spec: Its observations are grids that one agent walks on.
            code_size: Numbers of a code, D.

        Raises:
            DataError: If its observations are of another kind.
        """
        super().__init__()
        if spec.num_goal_tokens:
            raise DataError("num_goal_tokens is above 0, but this reads one vector a sentence; set it to 0 for grids")
        grid = spec.observation
        is_agent_grid = isinstance(grid, GridObservation) and len(grid.shape) == 3 and grid.shape[-1] == 2
        if not (is_agent_grid and isinstance(grid, GridObservation) and not grid.is_wide and not grid.num_numbers):
            raise DataError(
                f"observations are {grid}, but this reads grids that one agent walks on: 8 bits, shape (W, H, 2), no "
                "numbers beside them, as kalm/envs/agent_grid.py has it; turn them into such grids or into vectors"
            )
        ends = torch.tensor([*(-end for end in reversed(_BAND_ENDS)), *_BAND_ENDS])
        self.num_bands = len(ends) + 1
        band_of = torch.bucketize(torch.arange(-_FARTHEST, _FARTHEST + 1).float(), ends)
        self.register_buffer("band_of", band_of, persistent=False)
        self.code = nn.Embedding(_NUM_CODES, code_size)
        self.wanted = nn.Linear(spec.goal_embedding_size, code_size)
        self.channels = nn.Linear(code_size, _NUM_CHANNELS, bias=False)
        self.output_size = self.num_bands**2 * _NUM_CHANNELS + code_size

    def forward(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """Numbers (..., ``output_size``) of states (..., W, H, 2), for goals whose embeddings are (..., E)."""
        leading = observation.shape[:-3]
        view = agent_view(observation.reshape(-1, *observation.shape[-3:]))
        region = self._regions(view).unsqueeze(-1).expand(-1, -1, self.code.embedding_dim)
        codes = self.code(view.tiles.flatten(1))
        seen = codes.new_zeros(len(codes), self.num_bands**2, codes.shape[-1]).scatter_add(1, region, codes)
        wanted = 1 + self.wanted(goal_embedding).expand(*leading, -1).reshape(-1, 1, seen.shape[-1])
        of_regions = self.channels(seen * wanted).flatten(1)
        # In a history that is not full yet there are blank states, without an agent.
        carried = self.code(view.carried.clamp(min=0))
        return torch.cat([of_regions, carried], dim=-1).unflatten(0, leading)

    def _regions(self, view: AgentView) -> Tensor:
        """In which region each tile lies, int64 of shape (B, W * H)."""
        width, height = view.tiles.shape[1:]
        place = torch.arange(width * height, device=view.place.device)
        right_of = (place // height) - (view.place // height).unsqueeze(1)  # in x and y, before turning
        below = (place % height) - (view.place % height).unsqueeze(1)
        # To the right of the one that faces (a, b) is (-b, a), for y grows downwards.
        a = torch.tensor([1, 0, -1, 0], device=place.device)[view.direction].unsqueeze(1)
        b = torch.tensor([0, 1, 0, -1], device=place.device)[view.direction].unsqueeze(1)
        ahead, right = a * right_of + b * below, a * below - b * right_of
        return self.band_of[ahead + _FARTHEST] * self.num_bands + self.band_of[right + _FARTHEST]


class OnGrid(nn.Module):
    """A network over features and goal embedding, such as a perceptron, behind an encoder of grids of its own."""

    def __init__(self, encoder: GridEncoder, network: nn.Module) -> None:
        """Put one before the other."""
        super().__init__()
        self.encoder, self.network = encoder, network

    def forward(self, observation: Tensor, goal_embedding: Tensor) -> Any:
        """What the network makes of grids (..., W, H, 2) and goal embeddings (..., E)."""
        return self.network(self.encoder(observation, goal_embedding), goal_embedding)


class FirstInput(nn.Linear):
    """A linear layer over what is seen; a second input, the goal, is for networks that look at the one by the other."""

    def forward(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Of observations (..., O), whatever the goal; shape (..., D)."""
        return super().forward(observation)


def observation_token(spec: Spec, size: int) -> nn.Module:
    """What makes a token of ``size`` numbers of an observation, vector or grid, and a goal embedding."""
    if spec.num_goal_tokens:
        tokens = TokenEncoder(spec, [size] * _NUM_TOKEN_LAYERS)
        return OnTokens(tokens, nn.Linear(tokens.output_size, size))
    if isinstance(spec.observation, VectorObservation):
        return FirstInput(spec.observation_size, size)
    encoder = GridEncoder(spec)
    return OnGrid(encoder, FirstInput(encoder.output_size, size))
