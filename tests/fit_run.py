"""Everything that is trained, a few updates each, on one device or as one of two.

python -m tests.fit_run FOLDER    as ``tests.two_devices`` starts it: trains all, leaves FOLDER/<rank>/<name>.pt
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from tensordict import TensorDict

from kalm.core.errors import KalmError
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import RealRollouts
from kalm.data.transition_data import TransitionData
from kalm.llm.acting.llm_decision_transformer import LLMDecisionTransformer
from kalm.rl.dynamics.dynamics_check import DynamicsCheck
from tests.chain_domain import ChainDomain
from tests.llm.acting.test_llm_decision_transformer import good_and_bad
from tests.llm.models import chain_grounding_data, grounded_llm, tiny_backbone
from tests.rl.distillation.room_domain import room_data
from tests.rl.distillation.test_students import build as build_student
from tests.rl.distillation.test_students import students
from tests.rl.helpers import algorithms, build, chain_data, trainer, world
from tests.rl.test_algorithms import CASES

NUM_UPDATES = 10
_SEARCHING = "ddp_find_unused_parameters_true"

Case = tuple[Any, lightning.LightningDataModule]


def policy_cases() -> dict[str, Callable[[Path], Case]]:
    """Each algorithm, in the first kind of world that it knows."""
    first = dict(reversed(CASES))
    return {algorithm.__name__: _policy_case(algorithm, first[algorithm]) for algorithm in algorithms()}


def _policy_case(algorithm: Any, spec: Any) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        domain = world(spec)
        sizes = chain_data(folder / domain.name, domain).spec
        policy = build(algorithm, sizes, hidden_sizes=(16,))
        return policy, chain_data(folder / domain.name, domain, sequence_length=policy.sequence_length)

    return make


def other_cases() -> dict[str, Callable[[Path], Case]]:
    """Students, and what else learns."""

    def student_case(student: Any) -> Callable[[Path], Case]:
        return lambda folder: (build_student(student, room_data(folder / "room").spec), room_data(folder / "room"))

    def transformer(folder: Path) -> Case:
        data = good_and_bad(ChainDomain(), folder / "returns")
        torch.manual_seed(0)
        return LLMDecisionTransformer(data.spec, tiny_backbone(), inner_size=8), data

    def dynamics(folder: Path) -> Case:
        real = RealRollouts(str(folder / ChainDomain.name / "real"))
        data = TransitionData(ChainDomain(), real, batch_size=32, num_held_out=40)
        torch.manual_seed(0)
        return DynamicsCheck(data.spec, hidden_sizes=(16,)), data

    return {
        **{student.__name__: student_case(student) for student in students()},
        "GroundedLLM": lambda folder: (grounded_llm(), chain_grounding_data(folder / "language")),
        "LLMDecisionTransformer": transformer,
        "DynamicsCheck": dynamics,
    }


def cases() -> dict[str, Callable[[Path], Case]]:
    """All that learns, by name."""
    return {**policy_cases(), **other_cases()}


class BothHands(PolicyData):
    """The minibatches of two devices, one behind the other, for one device."""

    def batch(self, index: int) -> TensorDict:
        """What the two devices have in batch ``index``."""
        return torch.cat([super(BothHands, self).batch(2 * index + rank) for rank in range(2)], dim=1)


def train_on_two(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name, weights, and what was said when Lightning's usual strategy was refused, of everything."""
    for name, make in cases().items():
        refusal = ""
        try:
            module, data = make(folder)
            trainer(folder, NUM_UPDATES, devices=2, strategy="ddp").fit(module, data)
        except KalmError as error:
            refusal = str(error)
            module, data = make(folder)
            trainer(folder, NUM_UPDATES, devices=2, strategy=_SEARCHING).fit(module, data)
        yield name, {"state": module.state_dict(), "refusal": refusal}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    own = place / os.environ["LOCAL_RANK"]
    own.mkdir()
    for trained, found in train_on_two(place):
        torch.save(found, own / f"{trained}.pt")
