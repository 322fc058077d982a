"""What every module that acts in episodes shares, whatever it is made of: running them, and results for callbacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

from lightning import LightningModule

from kalm.core.errors import require
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode, EpisodeResult
from kalm.runs.devices import share_out


class EvaluatedPolicy(LightningModule):
    """A policy that ``validate`` and ``test`` let act; a subclass says how, in ``run_episodes``.

    Its data module has a ``domain`` and gives lists of episodes.

    Attributes:
        num_seeds: Policies side by side, each of which runs every episode.
        num_evaluation_envs: Episodes that run at the same time; the results do not depend on it.
        results_of_seeds: Results of the latest validation or test, a list for each seed.
    """

    num_seeds: int = 1

    def __init__(self, num_evaluation_envs: int) -> None:
        """Begin without results."""
        super().__init__()
        require(num_evaluation_envs >= 1, "num_evaluation_envs", num_evaluation_envs, "1 or more")
        self.num_evaluation_envs = num_evaluation_envs
        self.results_of_seeds: list[list[EpisodeResult]] = []
        self._loaded_updates = 0

    @abstractmethod
    def run_episodes(self, domain: Domain, episodes: Sequence[Episode], number: int = 0) -> list[EpisodeResult]:
        """Act in every episode, at least one, with one of the policies side by side, and keep nothing.

        Returns:
            One result an episode, in the order of ``episodes``.
        """

    @property
    def episode_results(self) -> list[EpisodeResult]:
        """Results of the latest validation or test, those of the first seed first."""
        return [result for results in self.results_of_seeds for result in results]

    @property
    def num_updates(self) -> int:
        """Updates behind the present weights, in training as well as after loading a checkpoint."""
        return max(self.trainer.global_step if self._trainer else 0, self._loaded_updates)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember how long the weights were trained."""
        self._loaded_updates = int(checkpoint["global_step"])

    def on_validation_epoch_start(self) -> None:
        """Forget the previous evaluation."""
        self.results_of_seeds = [[] for _ in range(self.num_seeds)]

    def on_test_epoch_start(self) -> None:
        """Forget the previous evaluation."""
        self.results_of_seeds = [[] for _ in range(self.num_seeds)]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run episodes and keep their results; a module that validates on other things as well overrides it."""
        self.evaluate(batch)

    def test_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Run episodes and keep their results."""
        self.evaluate(batch)

    def evaluate(self, episodes: Sequence[Episode]) -> None:
        """Run episodes with each of the policies side by side, and keep the results for the callbacks.

        Every device gets all of the episodes, runs a share of them, and has the results of all in the end.
        """
        domain: Domain = self.trainer.datamodule.domain  # type: ignore[attr-defined]
        for number, results in enumerate(self.results_of_seeds):
            results += share_out(episodes, partial(self._run_own, domain, number))

    def _run_own(self, domain: Domain, number: int, episodes: Sequence[Episode]) -> list[EpisodeResult]:
        return self.run_episodes(domain, episodes, number)
