"""What the devices of a run do together: each a share of the work, and all of them have all of its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed
from lightning import LightningModule
from torch.nn.parallel import DistributedDataParallel

from kalm.core.errors import KalmError

Work = TypeVar("Work")
Result = TypeVar("Result")


def share_out(work: Sequence[Work], do: Callable[[Sequence[Work]], list[Result]]) -> list[Result]:
    """Let each device do a share of some work, which all of them must call for at the same time.

    Args:
        work: The same on every device. Device r of n does pieces r, r + n, r + 2 n, ...
        do: Makes a result of each piece, in their order; it is asked for at least one.

    Returns:
        The results of all pieces in the order of ``work``, the same on every device.
    """
    is_alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    num_devices = 1 if is_alone else torch.distributed.get_world_size()
    if num_devices == 1:
        return do(work) if work else []
    own = work[torch.distributed.get_rank() :: num_devices]
    hands: list[list[Result]] = [[] for _ in range(num_devices)]
    torch.distributed.all_gather_object(hands, do(own) if own else [])
    return [hands[number % num_devices][number // num_devices] for number in range(len(work))]


def require_unused_search(module: LightningModule, because: str) -> None:
    """Refuse to train a module on several devices as if every parameter had a gradient in every update.

    The devices would wait for each other's gradients of parameters that have none.

    Raises:
        KalmError: It says what to set.
    """
    wrapped = module.trainer.model
    if isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters:
        raise KalmError(
            f"{type(module).__name__} on {module.trainer.world_size} devices: {because}, which trainer.strategy ddp "
            "does not expect; add --trainer.strategy ddp_find_unused_parameters_true, or --trainer.devices 1"
        )
