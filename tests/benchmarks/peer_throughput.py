"""Updates a second of kalm, d3rlpy and CORL: same networks, same batches, same data, same threads, in one run.

    python3 -m venv PEER && PEER/bin/pip install torch==2.13.0 d3rlpy
    git clone https://github.com/tinkoff-ai/CORL
    python -m tests.benchmarks.peer_throughput --d3rlpy-python PEER/bin/python --corl CORL

Each library runs its own loop with its own sampling, in a process of its own: kalm's through Lightning with loggers
(lightning_throughput.py), d3rlpy's ``fit`` (d3rlpy_throughput.py), the body of CORL's loop (corl_throughput.py).
Networks have two layers of 256. The libraries take turns, round by round, and medians are compared, because machines
drift. d3rlpy has a virtual environment of its own because it pins an old gymnasium. Nine minutes on two cores. Measure
with ``--clock cpu --threads 1`` where other work shares the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.throughput_cases import CASES, export_arrays, write_random_store

_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parents[1]
_PEERS = ("d3rlpy", "CORL")

Rates = dict[str, dict[str, list[float]]]  # case -> library -> updates a second of each round


class Measurement:
    """Runs workers and keeps what they report."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Write the data that all libraries train on into ``folder``."""
        self.options, self.folder = options, folder
        self.versions: dict[str, str] = {}
        self.rates: Rates = {}
        for case in CASES.values():
            if not (folder / case.data_name).exists():
                write_random_store(folder / case.data_name, case.is_discrete)
                export_arrays(folder / case.data_name, case, folder / f"{case.data_name}.npz")

    def round(self, number: int) -> None:
        """Measure every case once with every library that has it."""
        for name in self.options.cases:
            for library, command in self._commands(name):
                report = _run(command, self.options.threads)
                self.versions |= report["versions"]
                rate = report["updates_per_second"]
                self.rates.setdefault(name, {}).setdefault(library, []).append(rate)
                sys.stderr.write(f"round {number}: {name}: {library} {rate:.1f} updates/s\n")

    def _commands(self, name: str) -> Iterator[tuple[str, list[str]]]:
        case, options = CASES[name], self.options
        job: dict[str, Any] = {
            **{"case": name, "algorithm": case.algorithm.__name__, "is_discrete": case.is_discrete},
            **{"batch_size": case.batch_size, "threads": options.threads},
            **{"seconds": options.seconds, "clock": options.clock},
            **{"store": str(self.folder / case.data_name), "arrays": str(self.folder / f"{case.data_name}.npz")},
        }
        yield "kalm", [sys.executable, "-m", "tests.benchmarks.lightning_throughput", json.dumps(job)]
        if options.d3rlpy_python:
            yield "d3rlpy", [options.d3rlpy_python, str(_HERE / "d3rlpy_throughput.py"), json.dumps(job)]
        if options.corl and not case.is_discrete:
            job["corl"] = str(Path(options.corl).resolve())
            yield "CORL", [sys.executable, str(_HERE / "corl_throughput.py"), json.dumps(job)]


def _run(command: Sequence[str], num_threads: int) -> dict[str, Any]:
    """What a worker writes in its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    done = subprocess.run(command, cwd=_REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def table(rates: Rates) -> str:
    """Medians and ratios as a Markdown table."""
    medians = {name: {library: statistics.median(own) for library, own in row.items()} for name, row in rates.items()}
    ratios = {peer: {name: row["kalm"] / row[peer] for name, row in medians.items() if peer in row} for peer in _PEERS}
    head = "| algorithm (batch) | kalm | d3rlpy | CORL | kalm / d3rlpy | kalm / CORL |\n|---|---|---|---|---|---|\n"
    lines = [
        "| "
        + " | ".join(
            [
                name,
                *(f"{row[library]:.0f}" if library in row else "-" for library in ("kalm", *_PEERS)),
                *(f"{ratios[peer][name]:.2f}" if name in ratios[peer] else "-" for peer in _PEERS),
            ]
        )
        + " |\n"
        for name, row in medians.items()
    ]
    means = [f"{statistics.geometric_mean(own.values()):.2f}" if own else "-" for own in ratios.values()]
    return head + "".join(lines) + f"| geometric mean | | | | {' | '.join(means)} |\n"


def machine() -> str:
    """The processor, and how many cores of it there are."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in information.splitlines() if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d3rlpy-python", help="Python of the virtual environment that has d3rlpy.")
    parser.add_argument("--corl", help="Checkout of CORL.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="How long each library runs a case in a round.")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(options, Path(folder))
        for number in range(1, options.rounds + 1):
            measurement.round(number)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(measurement.versions.items()))
    sys.stdout.write(
        f"{table(measurement.rates)}\nUpdates a second, medians of {options.rounds} rounds of {options.seconds:g} s "
        f"({options.clock} clock), {options.threads} threads; {machine()}; {versions}.\n"
    )


if __name__ == "__main__":
    main()
