"""How often ``fit`` validates: in updates, as everything else is counted, where Lightning counts batches.

A batch is K updates of a policy (``data.updates_per_step``), or one of the several that an update accumulates.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from kalm.core.errors import KalmError

_NEVER_SAID = 1.0  # Lightning's default: at the end of an epoch, and what is learned from here has no end


def interval_in_batches(trainer: Mapping[str, Any], updates_per_batch: int) -> Any:
    """What Lightning is to be given as ``val_check_interval`` for the number of updates that it says.

    Args:
        trainer: The options of the trainer.
        updates_per_batch: Updates that one batch makes, K.

    Raises:
        KalmError: If the interval is no number of updates, is none that batches can hit, or never comes to its end.
    """
    interval, last = trainer.get("val_check_interval"), trainer.get("max_steps", -1)
    is_off = trainer.get("limit_val_batches") == 0 or trainer.get("fast_dev_run")
    is_unsaid = interval is None or (interval == _NEVER_SAID and isinstance(interval, float))
    if is_off or is_unsaid or isinstance(interval, str | timedelta | Mapping):
        return interval  # of times Lightning takes care
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise KalmError(
            f"trainer.val_check_interval is {interval}; so many updates lie between validations: give a whole number "
            "of 1 or more, or set trainer.limit_val_batches to 0"
        )
    if interval % updates_per_batch:
        raise KalmError(
            f"trainer.val_check_interval is {interval} updates, which is no multiple of data.updates_per_step "
            f"{updates_per_batch}; give {-(-interval // updates_per_batch) * updates_per_batch}"
        )
    if 0 <= last < interval:
        raise KalmError(
            f"trainer.val_check_interval is {interval} updates, but trainer.max_steps is {last}: no validation would "
            f"ever come. Give {last} or less, or set trainer.limit_val_batches to 0"
        )
    epochs = trainer.get("check_val_every_n_epoch")
    if epochs not in (None, 1):
        raise KalmError(
            f"trainer.check_val_every_n_epoch is {epochs}, but all training is one epoch: no validation would ever "
            "come. Set it to null; trainer.val_check_interval counts updates"
        )
    return interval // updates_per_batch * int(trainer.get("accumulate_grad_batches") or 1)
