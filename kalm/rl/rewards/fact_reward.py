"""Our proxy reward: one network for all goals reads a sentence into which facts meet it, and looks whether one is true.

A state comes as the facts that are true of it (``Domain.facts``): what is held, what is faced, which things stand side
by side, where the agent is. A small transformer reads the frozen vectors of the instruction's tokens and says which
relation, which first and which second symbol it asks for. A fact meets the goal with the product of the three
probabilities, and a state does if one of its facts does (a noisy or):

    P(met | s, g) = 1 - prod_{f in s} (1 - p(relation of f | g) p(first of f | g) p(second of f | g))

The product is why it generalises: what "ball" and "beside" mean is learned by any goal that names them. Which facts
meet which sentence is learned from a judge's labels alone.

Shape letters: B goals, N states of each, F facts of a state, V possible facts, L tokens, E numbers of a token, R
relations, Y symbols.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.errors import DataError, require
from kalm.core.specs import Spec
from kalm.rl.rewards.base import ProxyReward

_MAX_TOKENS = 256
_NEVER = -30.0  # log-probability of a fact that fills a row up
_FIRST_LOGIT = -2.0  # before it has learned anything, hardly any fact meets a goal


class FactReward(ProxyReward):
    """The network; ``LabelData`` with ``form: facts``."""

    possible_facts: Tensor

    def __init__(
        self,
        spec: Spec,
        hidden_size: int = 128,
        num_heads: int = 4,
        dropout: float = 0.1,
        num_relations: int = 16,
        num_symbols: int = 256,
        learning_rate: float = 2e-3,
        schedule_updates: int = 3000,
        precision: float = 0.95,
    ) -> None:
        """Build it with random weights.

        Args:
            spec: Sizes of the domain and of the encoder's vectors, linked to the data module's.
            hidden_size: Width of the reading.
            num_heads: Heads of its attention.
            dropout: Share of numbers dropped in reading, in [0, 1).
            num_relations: Relations that there may be, R.
            num_symbols: Symbols that there may be, Y.
            learning_rate: AdamW's, at first.
            schedule_updates: Updates over which it falls to 0 along half a cosine; set it to ``trainer.max_steps``.
            precision: Least precision of the thresholds on held-out labels, in (0, 1] (paper: 0.95).
        """
        sizes = {
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "dropout": dropout,
            "num_relations": num_relations,
            "num_symbols": num_symbols,
        }
        super().__init__({**sizes, "embedding_size": spec.goal_embedding_size}, precision)
        require(schedule_updates >= 1, "schedule_updates", schedule_updates, "1 or more")
        require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
        self._learning_rate, self._schedule_updates = learning_rate, schedule_updates
        self.enter = nn.Linear(spec.goal_embedding_size, hidden_size)
        self.place = nn.Embedding(_MAX_TOKENS, hidden_size)
        self.reader = nn.TransformerEncoderLayer(
            hidden_size, num_heads, 2 * hidden_size, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.slots = nn.Parameter(torch.randn(3, hidden_size) / hidden_size**0.5)
        self.norm = nn.LayerNorm(hidden_size)
        # Relation, first symbol, second symbol.
        widths = (num_relations, num_symbols, num_symbols)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, width))
            for width in widths
        )
        for head in self.heads:
            nn.init.constant_(head[2].bias, _FIRST_LOGIT)
        self.register_buffer("possible_facts", torch.zeros((0, 3), dtype=torch.int64), persistent=False)

    def setup(self, stage: str) -> None:
        """Learn which facts there can be."""
        self.use_facts(self.data.domain.possible_facts)

    def use_facts(self, possible_facts: NDArray[np.int64]) -> None:
        """Take the facts that a state's numbers refer to, shape (V, 3).

        Raises:
            DataError: If there are none, or more relations or symbols than the network has room for.
        """
        if not len(possible_facts):
            raise DataError("the domain knows no facts of its states; take kalm.rl.rewards.goal_networks.GoalNetworks")
        most = int(possible_facts[:, 0].max()) + 1, int(possible_facts[:, 1:].max()) + 1
        room = self.sizes["num_relations"], self.sizes["num_symbols"]
        if most[0] > room[0] or most[1] > room[1]:
            raise DataError(f"num_relations and num_symbols are {room}; the domain's facts need {most}")
        self.possible_facts = torch.from_numpy(possible_facts).to(self.device)

    def log_likelihood(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log P(met) and log P(not met), shape (B, N)."""
        of_facts = self.fact_log_probabilities(batch["tokens"], batch["attention_mask"])
        state = batch["state"]
        rows = state.flatten(1).long()
        found = of_facts.gather(1, rows).view(state.shape)
        log_unmet = _log_one_minus_exp(found).sum(-1)
        return _log_one_minus_exp(log_unmet), log_unmet

    def fact_log_probabilities(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """How likely each possible fact is to meet what sentences ask for: logarithms, shape (B, V + 1).

        The last column is that of no fact. Of tokens (B, L, E) and ``attention_mask`` (B, L).
        """
        read = [functional.logsigmoid(numbers) for numbers in self.read(tokens, attention_mask)]
        relation, first, second = self.possible_facts.unbind(1)
        of_second = torch.where(second >= 0, read[2][:, second.clamp(min=0)], 0.0)
        of_facts = read[0][:, relation] + read[1][:, first] + of_second
        return functional.pad(of_facts.clamp(min=_NEVER), (0, 1), value=_NEVER)

    def read(self, tokens: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """What sentences ask for, as logits: relations (B, R), first and second symbols (B, Y) each."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        entered = self.enter(tokens) + self.place(places)
        hidden = self.norm(self.reader(entered, src_key_padding_mask=~attention_mask))
        attention = (hidden @ self.slots.T).masked_fill(~attention_mask[..., None], -torch.inf).softmax(1)
        pooled = attention.transpose(1, 2) @ hidden
        return [head(pooled[:, slot]) for slot, head in enumerate(self.heads)]

    def configure_optimizers(self) -> Any:
        """AdamW, whose rate falls to zero."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self._learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._schedule_updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _log_one_minus_exp(logarithm: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, precise at both ends."""
    logarithm = logarithm.clamp(max=-1e-12)
    is_near_zero = logarithm > -0.6931
    # Each branch sees only numbers for which its gradient is finite.
    near = torch.log(-torch.expm1(torch.where(is_near_zero, logarithm, -0.5)))
    far = torch.log1p(-torch.exp(torch.where(is_near_zero, -1.0, logarithm)))
    return torch.where(is_near_zero, near, far)
