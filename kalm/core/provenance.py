"""Which state of the code made a file."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

_SECONDS = 30


@cache
def git_commit(folder: Path) -> str:
    """Commit of the checkout that holds ``folder``, marked ``-dirty`` with local changes; ``unknown`` elsewhere."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "unknown"
