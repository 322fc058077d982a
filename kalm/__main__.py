"""``python -m kalm VERB``: find the verb's module, run it, turn errors into messages and exit codes.

Nothing heavy is imported before the verb is known, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys

import kalm
from kalm.core.errors import KalmError
from kalm.core.termination import ended_by_sigterm

# verb -> module, what it does. Each module has a function ``run_verb(verb, arguments)``.
_VERBS = {
    "collect": ("kalm.cli.verbs", "collect real rollouts with the domain's expert into a rollout store"),
    "label": ("kalm.cli.verbs", "ask a judge which states of a rollout store meet which goals"),
    "solve": (
        "kalm.cli.verbs",
        "solve every goal that was met, on what was recorded, into a store of plans",
    ),
    "fit": ("kalm.cli.lightning_cli", "train: ground a language model, or learn a policy"),
    "predict": ("kalm.cli.lightning_cli", "let a grounded language model imagine rollouts"),
    "validate": ("kalm.cli.lightning_cli", "evaluate a checkpoint on the validation episodes"),
    "test": ("kalm.cli.lightning_cli", "evaluate a checkpoint on the test episodes of every goal split"),
    "run": ("kalm.cli.verbs", "run a whole study: every stage in order, skipping what is done, then the report"),
    "export": ("kalm.cli.verbs", "merge a grounded language model and save it as a plain Hugging Face folder"),
    "report": ("kalm.cli.verbs", "make tables and plots of what runs have written"),
    "doctor": ("kalm.cli.verbs", "check versions, GPU, rendering, disk and name clashes; or a world of your own"),
}

_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command: what follows ``python -m kalm``, by default on the command line of this process.

    Returns:
        Exit code: 0 done, 2 usage, 3 data or numbers, 4 checkpoint, 5 environment, 130 interrupted, 143 terminated.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if verb == "--version":
        sys.stdout.write(f"kalm {kalm.__version__}\n")
        return 0
    try:
        if verb not in _VERBS:
            raise KalmError(
                f"unknown verb {verb!r}; the verbs are {', '.join(_VERBS)}. python -m kalm --help says more"
            )
        with ended_by_sigterm():
            code = importlib.import_module(_VERBS[verb][0]).run_verb(verb, rest)
    except KalmError as error:
        if os.environ.get("KALM_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            return _INTERRUPTED
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    return code or 0


def _help() -> str:
    width = max(map(len, _VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, (_, text) in _VERBS.items())
    return (
        "usage: python -m kalm VERB [--config FILE ...] [--key value ...]\n\n"
        f"Offline reinforcement learning from language-model rollouts, version {kalm.__version__}.\n\n"
        f"verbs:\n{verbs}\n\n"
        "python -m kalm VERB --help lists what a verb takes. Example:\n"
        "  python -m kalm run conf/study/clevr_robot_demo.yaml\n"
        "KALM_TRACEBACK=1 shows where in the code an error was raised.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
