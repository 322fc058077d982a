"""Errors a user can cause and mend; the command line prints them without a traceback and exits with their code."""


class KalmError(ValueError):
    """A mistake the user can mend. The message says what was wrong, what was found, what is allowed, what to do."""

    exit_code = 2


class DataError(KalmError):
    """Data or numbers that cannot be used: malformed stores, empty splits, non-finite values."""

    exit_code = 3


class CheckpointError(KalmError):
    """A checkpoint that is missing, damaged or made for something else."""

    exit_code = 4


class SimulatorError(KalmError):
    """An environment that cannot run here: missing GL, wrong simulator version, unknown task."""

    exit_code = 5


def require(is_met: bool, name: str, value: object, allowed: str) -> None:
    """Stop a constructor on a value out of range.

    Raises:
        KalmError: Unless ``is_met``; it names the argument, its value and what is allowed.
    """
    if not is_met:
        raise KalmError(f"{name} is {value}; it must be {allowed}")
