"""The extra inputs and outputs of the language model: states and actions in, actions, next states and an end out.

In the paper's symbols: ``encode_observation`` is E_S, ``encode_action`` E_A, ``action_head`` O_A, ``change_head``
O_S. A state is one token, an action is one token.

A backbone may be made of several models that read the same tokens. Each then has encoders of its own, whose vectors
lie side by side; actions and ends are read off the first model's hidden vector, changes off the last one's.

Shape letters: O numbers in an observation, A actions or numbers in an action, H hidden sizes of all models together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kalm.core.specs import Spec
from kalm.llm.backbones.backbone import TOKEN_STD

# Further from the mean than this many standard deviations, an observation says no more. Numbers that hardly vary in the
# data, such as the place of an object that is put aside, would otherwise drown all others wherever they do.
_MOST_DEVIATIONS = 10.0
# A change counts in units of its spread, but of no less than this part of the number's own: else the trembling of an
# object at rest would be what there is to learn.
_LEAST_CHANGE = 1e-3


class RolloutCodec(nn.Module):
    """Encoders and heads for observations and actions, with the statistics that normalise them.

    A next observation is predicted as its change, in units of the spread of changes: most numbers hardly move in one
    step, and an absolute prediction would spend itself on repeating them. A number that never changes within a rollout
    of the data is not predicted at all: it stays exactly what it was. So do the zeros of a thing that a scene lacks:
    else what is not there would come into being, a little more at every step. All others stay within the range that
    steps of the data led to: small errors add up in imagination, and would carry it out of the world.

    Attributes:
        token_scales: Multiply the vectors of states and actions, one number a model; a pretrained model's embeddings
            are short.
    """

    observation_mean: Tensor
    observation_std: Tensor
    change_std: Tensor
    least_outcome: Tensor
    greatest_outcome: Tensor
    _entity_of_number: Tensor

    def __init__(self, spec: Spec, hidden_sizes: Sequence[int], inner_size: int) -> None:
        """Build it with random weights and neutral statistics, for the hidden sizes of a backbone's parts."""
        super().__init__()
        self.is_discrete, self.action_size = spec.is_discrete, spec.action_size
        self._hidden_sizes = list(hidden_sizes)
        encoders = [_observation_encoder(spec.observation_size, size, inner_size) for size in hidden_sizes]
        self.observation_encoder = _side_by_side(encoders)
        self.action_encoder = _side_by_side([_action_encoder(spec, size, inner_size) for size in hidden_sizes])
        self.action_head = nn.Linear(hidden_sizes[0], spec.action_size)
        self.change_head = nn.Sequential(
            nn.Linear(hidden_sizes[-1], inner_size), nn.SiLU(), nn.Linear(inner_size, spec.observation_size)
        )
        self.end_head = nn.Linear(hidden_sizes[0], 1)
        self.register_buffer("observation_mean", torch.zeros(spec.observation_size))
        self.register_buffer("observation_std", torch.ones(spec.observation_size))
        self.register_buffer("change_std", torch.ones(spec.observation_size))
        self.register_buffer("least_outcome", torch.full((spec.observation_size,), -torch.inf))
        self.register_buffer("greatest_outcome", torch.full((spec.observation_size,), torch.inf))
        owner = torch.zeros(spec.observation_size, dtype=torch.long)  # entity 0 is what no scene lacks
        for number, (first, end) in enumerate(spec.entities, start=1):
            owner[first:end] = number
        self.register_buffer("_entity_of_number", owner, persistent=False)
        self._num_entities = len(spec.entities)
        self.token_scales = [1.0] * len(hidden_sizes)

    def set_statistics(self, observation_mean: Tensor, observation_std: Tensor, change_std: Tensor) -> None:
        """Take the training data's statistics, shape (O,); where a number never varies, 1 and a change's 0."""
        self.observation_mean.copy_(observation_mean)
        self.observation_std.copy_(observation_std)
        at_least = torch.maximum(change_std, _LEAST_CHANGE * observation_std)
        self.change_std.copy_(torch.where(change_std > 0, at_least, 0.0))

    def set_range(self, least_outcome: Tensor, greatest_outcome: Tensor) -> None:
        """Take the least and the greatest of each number that steps of the training data led to, shape (O,)."""
        self.least_outcome.copy_(least_outcome)
        self.greatest_outcome.copy_(greatest_outcome)

    def can_change(self, observation: Tensor) -> Tensor:
        """True, of shape (..., O), at numbers that change within the data and belong to nothing that is not there."""
        changes = (self.change_std > 0).expand(observation.shape)
        if not self._num_entities:
            return changes
        owner = self._entity_of_number.expand(observation.shape)
        size = observation.new_zeros(*observation.shape[:-1], self._num_entities + 1)
        is_there = size.scatter_add(-1, owner, observation.abs()) > 0
        is_there[..., 0] = True
        return changes & is_there.gather(-1, owner)

    def encode_observation(self, observation: Tensor) -> Tensor:
        """Vectors of state tokens, from (..., O) to (..., H)."""
        normalised = (observation - self.observation_mean) / self.observation_std
        return self._scaled(self.observation_encoder(normalised.clamp(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)))

    def encode_action(self, action: Tensor) -> Tensor:
        """Vectors of action tokens, from (...) or (..., A) to (..., H)."""
        return self._scaled(self.action_encoder(action))

    @property
    def no_action(self) -> Tensor:
        """An action column without rows, shape (0,) or (0, A)."""
        device = self.observation_mean.device
        if self.is_discrete:
            return torch.zeros(0, dtype=torch.int64, device=device)
        return torch.zeros(0, self.action_size, device=device)

    def predict_action(self, hidden: Tensor) -> Tensor:
        """Scores of all actions, or the action itself where it is continuous: from (..., H) to (..., A)."""
        return self.action_head(hidden[..., : self._hidden_sizes[0]])

    def predict_change(self, hidden: Tensor) -> Tensor:
        """Change of the observation in units of ``change_std``, from (..., H) at action tokens to (..., O)."""
        return self.change_head(hidden[..., -self._hidden_sizes[-1] :])

    def predict_end(self, hidden: Tensor) -> Tensor:
        """Score for the rollout to end at a state token, from (..., H) to (...)."""
        return self.end_head(hidden[..., : self._hidden_sizes[0]]).squeeze(-1)

    def change(self, observation: Tensor, next_observation: Tensor) -> Tensor:
        """What ``predict_change`` should have said, shape (..., O); 0 for numbers that never change."""
        difference = next_observation - observation
        scale = torch.where(self.change_std > 0, self.change_std, 1.0)
        return torch.where(self.can_change(observation), difference / scale, 0.0)

    def apply_change(self, observation: Tensor, change: Tensor) -> Tensor:
        """The next observation, shape (..., O): no step leads out of the range of the data, or farther out of it."""
        least = torch.minimum(self.least_outcome, observation)
        greatest = torch.maximum(self.greatest_outcome, observation)
        step = torch.where(self.can_change(observation), change * self.change_std, 0.0)
        return (observation + step).clamp(least, greatest)

    def _scaled(self, vectors: Tensor) -> Tensor:
        """Vectors about as long as each model's own, (..., H)."""
        parts = vectors.split(self._hidden_sizes, dim=-1)
        return torch.cat([scale * part for scale, part in zip(self.token_scales, parts, strict=True)], dim=-1)


class _SideBySide(nn.ModuleList):
    """What several modules make of the same input, as one vector."""

    def forward(self, value: Tensor) -> Tensor:
        return torch.cat([module(value) for module in self], dim=-1)


def _side_by_side(modules: list[nn.Module]) -> nn.Module:
    """One module stays what it is, and so do the names of its parameters in checkpoints."""
    return modules[0] if len(modules) == 1 else _SideBySide(modules)


def _observation_encoder(size: int, hidden_size: int, inner_size: int) -> nn.Module:
    first, second = nn.Linear(size, inner_size), nn.Linear(inner_size, inner_size)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Linear(inner_size, hidden_size))


def _action_encoder(spec: Spec, hidden_size: int, inner_size: int) -> nn.Module:
    if not spec.is_discrete:
        return nn.Sequential(nn.Linear(spec.action_size, inner_size), nn.SiLU(), nn.Linear(inner_size, hidden_size))
    table = nn.Embedding(spec.action_size, hidden_size)
    nn.init.normal_(table.weight, std=TOKEN_STD)
    return table
