"""The planner student: it reads what is wanted, prices every tile, solves for shortest paths, and looks around itself.

What it learns is local, as the world's laws are. From the instruction and what is in the hand it gives every code of a
tile a reward and a cost, in a few channels; the costs of walls and locked doors are learned like all others. An exact
and differentiable shortest path (``kalm/rl/networks/shortest_path.py``) turns each channel into a map of values, and
the agent acts on the values and codes of the 5 x 5 tiles around it, turned its way. How far a thing is, and by which
doors, is then nothing that has to be learned, so that a new place is no harder than a known one.

Ours; the paper distils into a language model (TEDUO, section 3.3). Value iteration as a layer is from Tamar et al. 2016
(arXiv:1602.02867); here it is exact and has no number of iterations.

Shape letters: B states, G instructions, W columns, H rows, K codes, C channels, P tiles of a patch, D numbers of a
meaning.
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
from kalm.rl.networks.sentence_reader import SentenceReader
from kalm.rl.networks.shortest_path import shortest_paths

_RADIUS = 2  # of the patch
_LEAST_COST = 0.02  # of passing a tile: above 0, so that shortest paths exist
_REWARD_SCALE = 10.0  # a reward outweighs the longest path across the grid from the start
_FIRST_SPREAD = 0.1  # of rows of tables; torch's 1 would drown what else is added to them
_VALUE_RANGE = 4.0  # differences of value around the agent beyond which more is all the same


class CodeTable(nn.Embedding):
    """A row a code."""

    def __init__(self, num_codes: int, size: int, first_spread: float = _FIRST_SPREAD) -> None:
        """So many rows of so many numbers, whose standard deviation at first is ``first_spread``."""
        self._first_spread = first_spread
        super().__init__(num_codes, size)

    def reset_parameters(self) -> None:
        """Draw the rows anew."""
        nn.init.normal_(self.weight, std=self._first_spread)


class CodeSum(nn.EmbeddingBag):
    """A row for each code at each place; rows of one state are added up."""

    def reset_parameters(self) -> None:
        """Draw the rows anew."""
        nn.init.normal_(self.weight, std=_FIRST_SPREAD)


class PlannerStudent(Student):
    """Reward and cost a tile, shortest paths, a patch of values; half a million parameters."""

    def __init__(
        self,
        spec: StudentSpec,
        num_channels: int = 3,
        hidden_size: int = 256,
        num_queries: int = 8,
        query_size: int = 64,
        num_matches: int = 8,
        match_size: int = 16,
        summary_size: int = 0,
        **options: Any,
    ) -> None:
        """Build the networks.

        Args:
            spec: Sizes of states, tokens and questions; the command line takes them from the data.
            num_channels: Maps of values, C: one could be for what is wanted, another for where to bring it.
            hidden_size: Width of the two hidden layers that choose the action; the pricing has a quarter of it.
            num_queries: What is asked of a sentence's tokens.
            query_size: Numbers in what each query finds.
            num_matches: Ways in which what is meant is compared with a code, so that "red" and "ball" can be told from
                each other, and pairs of them understood that no plan was for.
            match_size: Numbers that are compared in each.
            summary_size: Numbers of a free summary of the sentence that it acts on beside its answers to the
                questions. At 0 it knows nothing but those: what it learned about a thing then holds for whatever asks
                for such a thing.
            options: Options that all students share.
        """
        super().__init__(spec, **options)
        for name, value in (("num_channels", num_channels), ("hidden_size", hidden_size), ("num_queries", num_queries)):
            require(value >= 1, name, value, "1 or more")
        self._sizes = {
            "num_channels": num_channels, "hidden_size": hidden_size, "num_queries": num_queries,
            "query_size": query_size, "num_matches": num_matches, "match_size": match_size,
            "summary_size": summary_size,
        }  # fmt: skip
        self.num_channels = num_channels
        self.reader = SentenceReader(spec.goal_embedding_size, num_queries, query_size)
        self.answers = AnswerHeads(self.reader.output_size, spec.questions)
        self.summary = nn.Linear(self.reader.output_size, summary_size) if summary_size else None
        size = summary_size + sum(number for _, number in spec.questions)
        # Prices: of every code, for what is meant and carried.
        pricing_size = hidden_size // 4
        self.price_of_code = CodeTable(spec.num_codes, pricing_size)
        self.price_of_carried = CodeTable(spec.num_codes, pricing_size)
        self.price_of_meaning = nn.Linear(size, pricing_size)
        self.num_matches = num_matches
        self.match_of_code = CodeTable(spec.num_codes, num_matches * match_size, first_spread=1.0)
        self.match_of_meaning = nn.Linear(size, num_matches * match_size)
        self.price_of_matches = nn.Linear(num_matches, pricing_size, bias=False)
        self.price_hidden = nn.Linear(pricing_size, pricing_size)
        self.price = nn.Linear(pricing_size, 2 * num_channels)
        # A place that the sentence names by numbers.
        self.column, self.row = nn.Linear(size, spec.max_size), nn.Linear(size, spec.max_size)
        self.place_reward = nn.Linear(size, num_channels)
        # The action. The first layer's columns for codes on the patch, one-hot, are rows of a table.
        num_tiles = (2 * _RADIUS + 1) ** 2
        self.first_of_codes = CodeSum(num_tiles * spec.num_codes, hidden_size, mode="sum")
        self.first_of_carried = CodeTable(spec.num_codes, hidden_size)
        self.first_of_meaning = nn.Linear(size, hidden_size)
        self.first_of_values = nn.Linear(num_channels * (num_tiles + 1), hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)
        self.action = nn.Linear(hidden_size, spec.action_size)

    @property
    def sizes(self) -> dict[str, Any]:
        """Its own sizes."""
        return dict(self._sizes)

    def read(self, instructions: Instructions) -> ReadInstructions:
        """Meaning (G, D): how likely each answer to each question is, behind the summary if there is one."""
        found = self.reader(instructions.tokens, instructions.padding_mask)
        answers = self.answers(found)
        likely = [logits.softmax(-1) for logits in answers]
        summary = [] if self.summary is None else [torch.relu(self.summary(found))]
        return ReadInstructions(torch.cat([*summary, *likely], dim=-1), answers)

    def logits(self, view: AgentView, meaning: Tensor, goal: Tensor) -> Tensor:
        """Of each action, shape (B, A)."""
        reward, cost = self._priced(view, meaning, goal)
        values = shortest_paths(reward, cost)
        return self._choose(view, values, meaning, goal)

    def _priced(self, view: AgentView, meaning: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Reward and cost of every tile, shape (B, C, W, H) each."""
        one = self.match_of_meaning(meaning).unflatten(1, (self.num_matches, -1))
        other = self.match_of_code.weight.unflatten(1, (self.num_matches, -1))
        of_goal = self.price_of_matches(torch.einsum("gmd,kmd->gkm", one, other)) + self.price_of_code.weight
        of_goal = of_goal + self.price_of_meaning(meaning).unsqueeze(1)
        hidden = torch.relu(of_goal[goal] + self.price_of_carried(view.carried).unsqueeze(1))
        hidden = torch.relu(self.price_hidden(hidden))
        prices = self.price(hidden).transpose(1, 2)  # (B, 2 C, K)
        tiles = view.tiles.flatten(1).unsqueeze(1).expand(-1, prices.shape[1], -1)
        reward, cost = prices.gather(2, tiles).unflatten(2, view.tiles.shape[1:]).chunk(2, dim=1)
        return _REWARD_SCALE * reward + self._named_place(view, meaning)[goal], _LEAST_COST + functional.softplus(cost)

    def _named_place(self, view: AgentView, meaning: Tensor) -> Tensor:
        """Reward of the tile that a sentence names by column and row, shape (G, C, W, H)."""
        width, height = view.tiles.shape[1:]
        column, row = self.column(meaning).softmax(-1)[:, :width], self.row(meaning).softmax(-1)[:, :height]
        return _REWARD_SCALE * torch.einsum("gc,gx,gy->gcxy", self.place_reward(meaning), column, row)

    def _choose(self, view: AgentView, values: Tensor, meaning: Tensor, goal: Tensor) -> Tensor:
        places = patch_places(view, _RADIUS)
        codes = functional.pad(view.tiles, [_RADIUS] * 4, value=self.spec.outside).flatten(1).gather(1, places)
        number = torch.arange(places.shape[1], device=places.device) * self.spec.num_codes
        # Beyond the grid stands what is worst around, which is nothing to go to.
        around = functional.pad(values, [_RADIUS] * 4, mode="replicate").flatten(2)
        around = around.gather(2, places.unsqueeze(1).expand(-1, self.num_channels, -1))
        here = around[:, :, around.shape[2] // 2]
        differences = _VALUE_RANGE * torch.tanh((around - here.unsqueeze(2)) / _VALUE_RANGE)
        seen = torch.cat([differences.flatten(1), here / _REWARD_SCALE], dim=1)
        hidden = (
            self.first_of_codes(codes + number)
            + self.first_of_carried(view.carried)
            + self.first_of_meaning(meaning)[goal]
            + self.first_of_values(seen)
        )
        return self.action(torch.relu(self.second(torch.relu(hidden))))
