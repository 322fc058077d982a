"""How often real and imagined transitions break the world's rules, flag by flag (KALM, table 4)."""

from __future__ import annotations

from collections import Counter

from lightning.pytorch import LightningModule, Trainer

from kalm.callbacks.imagination import ValidatedRollouts


class Plausibility(ValidatedRollouts):
    """Logs ``plausibility/<source>/<split>/<flag>``: the share of transitions that each of the domain's flags marks.

    Real rollouts are the held-out ones of a validation, imagined ones what the same validation imagined. What the real
    ones show is the rate at which a flag is raised for nothing.
    """

    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count transitions; the domain has marked them already."""
        num_marked, num_transitions = Counter[str](), Counter[str]()
        for source, rollouts in (("real", self.real), ("imaginary", self.imagined)):
            for rollout in rollouts:
                for flag, marked in rollout.violations.items():
                    name = f"plausibility/{source}/{rollout.goal_split}/{flag}"
                    num_marked[name] += marked
                    num_transitions[name] += len(rollout)
        pl_module.log_dict({name: num_marked[name] / total for name, total in num_transitions.items()}, batch_size=1)
