"""BabyAI's imitation network as a student: a recurrent reader whose sentence modulates a convolutional network.

A GRU reads the instruction; what it read scales and shifts the features of convolutional blocks, which see the grid
from where the agent stands (FiLM: Perez et al. 2018, arXiv:1709.07871). It is the baseline of TEDUO's table 1.

Paper: Chevalier-Boisvert et al. 2019 (arXiv:1810.08272), the small network of its section 3.3 and code.

Differences from the paper: 1. it sees the whole neighbourhood of the agent within ``radius``, walls or not, for these
worlds are fully observed, and so it has no memory; 2. the GRU reads the frozen vectors of the sentence encoder's tokens
instead of learned word vectors, as all students do; 3. no batch normalisation, which would make an action depend on
what else is in the batch; 4. half of the channels; 5. the loss over sets of optimal actions, and the questions.

Shape letters: B states, G instructions, L tokens, C channels, S tiles across the view, D numbers of a meaning.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.errors import require
from kalm.data.plan_data import StudentSpec
from kalm.rl.distillation.student import AnswerHeads, Instructions, ReadInstructions, Student
from kalm.rl.networks.agent_view import AgentView, patch_places

_CODE_SIZE = 32  # numbers in the vector of a code
_POOLS = 2  # each halves the view


class ImitationStudent(Student):
    """GRU, FiLM and convolutions."""

    def __init__(
        self,
        spec: StudentSpec,
        num_channels: int = 64,
        meaning_size: int = 128,
        hidden_size: int = 128,
        radius: int = 10,
        num_blocks: int = 2,
        **options: Any,
    ) -> None:
        """Build the networks.

        Args:
            spec: Sizes of states, tokens and questions; the command line takes them from the data.
            num_channels: Of every convolution, C (paper: 128).
            meaning_size: Numbers in what is read of a sentence, D (paper: 128).
            hidden_size: Width of the hidden layer that chooses the action (paper: 64, behind a memory of 128).
            radius: How far it sees on each side (paper: 3, and no further than walls).
            num_blocks: Blocks that the sentence modulates (paper: 2).
            options: Options that all students share.
        """
        super().__init__(spec, **options)
        self._sizes = {
            "num_channels": num_channels, "meaning_size": meaning_size, "hidden_size": hidden_size, "radius": radius,
            "num_blocks": num_blocks,
        }  # fmt: skip
        for name, value in self._sizes.items():
            require(value >= 1, name, value, "1 or more")
        side = (2 * radius + 1) // 2**_POOLS
        require(side >= 1, "radius", radius, "2 or more")
        self.radius = radius
        self.gru = nn.GRU(spec.goal_embedding_size, meaning_size, batch_first=True)
        self.answers = AnswerHeads(meaning_size, spec.questions)
        self.code = nn.Embedding(spec.num_codes, _CODE_SIZE)
        self.first = nn.Conv2d(_CODE_SIZE, num_channels, 3, padding=1)
        self.blocks = nn.ModuleList(FilmBlock(num_channels, meaning_size) for _ in range(num_blocks))
        self.hidden = nn.Linear(num_channels * side**2 + _CODE_SIZE + meaning_size, hidden_size)
        self.action = nn.Linear(hidden_size, spec.action_size)

    @property
    def sizes(self) -> dict[str, Any]:
        """Its own sizes."""
        return dict(self._sizes)

    def read(self, instructions: Instructions) -> ReadInstructions:
        """Meaning (G, D): where the GRU stands behind the last token."""
        states, _ = self.gru(instructions.tokens)
        last = instructions.padding_mask.sum(1) - 1
        meaning = states[torch.arange(len(last), device=last.device), last]
        return ReadInstructions(meaning, self.answers(meaning))

    def logits(self, view: AgentView, meaning: Tensor, goal: Tensor) -> Tensor:
        """Of each action, shape (B, A)."""
        bordered = functional.pad(view.tiles, [self.radius] * 4, value=self.spec.outside).flatten(1)
        codes = bordered.gather(1, patch_places(view, self.radius)).unflatten(1, (2 * self.radius + 1, -1))
        features = self.code(codes).permute(0, 3, 1, 2)
        features = functional.max_pool2d(torch.relu(self.first(features)), 2)
        for block in self.blocks:
            features = block(features, meaning, goal)
        features = functional.max_pool2d(features, 2).flatten(1)
        seen = torch.cat([features, self.code(view.carried), meaning[goal]], dim=1)
        return self.action(torch.relu(self.hidden(seen)))


class FilmBlock(nn.Module):
    """Two convolutions whose output a sentence scales and shifts, added to the input."""

    def __init__(self, num_channels: int, meaning_size: int) -> None:
        """Sizes C and D."""
        super().__init__()
        self.inner = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.outer = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.scale_and_shift = nn.Linear(meaning_size, 2 * num_channels)

    def forward(self, features: Tensor, meaning: Tensor, goal: Tensor) -> Tensor:
        """Features, (B, C, S, S), for sentences that mean ``meaning``, (G, D), of which each state has ``goal``."""
        scale, shift = self.scale_and_shift(meaning)[goal].unsqueeze(-1).unsqueeze(-1).chunk(2, dim=1)
        modulated = self.outer(torch.relu(self.inner(features))) * (1 + scale) + shift
        return torch.relu(features + modulated)
