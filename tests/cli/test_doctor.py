"""The doctor finds what it says it looks for, and its exit code says whether anything is wrong."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from kalm.__main__ import main
from kalm.cli.doctor import Finding, check_disk, check_known_bad, check_name_clash, check_requirements, report
from kalm.envs.base import Domain


def verdicts(findings: list[Finding]) -> dict[str, str]:
    """Subject -> verdict."""
    return {finding.subject: finding.verdict for finding in findings}


def test_other_distribution_called_kalm_is_a_clash() -> None:
    """The unrelated project on the package index installs the same import name."""
    (finding,) = check_name_clash(lambda name: "0.3" if name == "kalm" else None)
    assert finding.verdict == "wrong"
    assert "pip uninstall kalm kalm-rl" in finding.text
    assert [finding.verdict for finding in check_name_clash(lambda name: None)] == ["ok"]


def test_requirements_are_checked_by_version() -> None:
    """Too old and absent are wrong; extras are not asked for."""
    versions = {"alpha": "1.9", "beta": "2.0+cpu"}
    requirements = ["alpha>=2", "beta>=2", "gamma==1", 'delta; extra == "dev"']
    found = list(check_requirements(requirements, versions.get))
    assert verdicts(found) == {"alpha": "wrong", "beta": "ok", "gamma": "wrong"}
    assert "1.9; needed: alpha>=2" in found[0].text


@pytest.mark.parametrize(
    ("distribution", "version", "reason"),
    [
        ("lightning", "2.6.2", "compromised"),
        ("lightning", "2.6.3", "compromised"),
        ("lightning", "2.6.5", "code execution"),
        ("torch", "2.9.1", "weights_only"),
        ("tensordict", "0.15.0", "torchrl"),
        ("d3rlpy", "2.8.1", "gymnasium"),
    ],
)
def test_known_bad_versions_are_found(distribution: str, version: str, reason: str) -> None:
    """They install without complaint; nothing else would tell."""
    found = list(check_known_bad({distribution: version}.get))
    assert reason in " ".join(finding.text for finding in found)
    assert {finding.verdict for finding in found} == {"wrong"}


def test_present_versions_are_not_known_bad() -> None:
    """What constraints.txt installs."""
    good = {"lightning": "2.6.6", "torch": "2.13.0+cpu", "tensordict": "0.14.3"}
    assert list(check_known_bad(good.get)) == []


@pytest.mark.parametrize(("free", "verdict"), [(100 << 20, "wrong"), (2 << 30, "note"), (50 << 30, "ok")])
def test_scarce_disk_is_reported(free: int, verdict: str) -> None:
    """In bytes of the file system that the runs would be written to."""
    assert [finding.verdict for finding in check_disk(Path("runs"), free)] == [verdict]


def test_exit_code_tells_wrong_from_noteworthy() -> None:
    """Notes alone are no failure."""
    note, wrong = Finding("GL", "note", "drawings"), Finding("torch", "wrong", "old")
    console = Console(file=io.StringIO())
    assert report([note], console) == 0
    assert report([note, wrong], console) == 5


def test_this_machine_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole verb: every part has its line."""
    assert main(["doctor"]) in (0, 5)
    out = capsys.readouterr().out
    for subject in ("Python", "the name kalm", "lightning", "CPU", "GPU", "disk", "GL", "sentence encoder"):
        assert subject in out


@pytest.mark.parametrize(("problems", "code"), [(["easy has no sentences", "expert fails"], 5), ([], 0)])
def test_a_world_is_checked_instead_of_the_machine(
    problems: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given by class path; every problem is a line, and none at all is said as well."""
    seen: list[Domain] = []
    contract = ModuleType("kalm.envs.contract")
    contract.check_domain = lambda domain: seen.append(domain) or problems  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "kalm.envs.contract", contract)
    assert main(["doctor", "--domain", "tests.chain_domain.ChainDomain"]) == code
    assert [type(domain).__name__ for domain in seen] == ["ChainDomain"]
    said = capsys.readouterr().out.splitlines()
    assert said[:-1] == [f"- {problem}" for problem in problems]
    assert ("in 2 way(s)" if problems else "ChainDomain keeps the contract") in said[-1]


def test_a_world_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """As everywhere else on the command line: with the nearest that does."""
    assert main(["doctor", "--domain", "tests.chain_domain.ChaneDomain"]) == 2
    assert "did you mean 'tests.chain_domain.ChainDomain'?" in capsys.readouterr().err
