"""What an installation gets: every module and data file, `callbacks/` as `kalm.callbacks`, pinned versions."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without a network from a copy of the sources, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("kalm", "callbacks"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("kalm_rl-*.whl")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    """One entry for each Python file of kalm/ and callbacks/; no tests, no top-level `callbacks`."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.endswith(".py")}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kalm").rglob("*.py")}
    expected |= {f"kalm/callbacks/{path.name}" for path in (ROOT / "callbacks").glob("*.py")}
    assert "kalm/callbacks/__init__.py" in held
    assert held == expected


def test_the_wheel_holds_every_data_file(wheel):
    """Instructions and whatever else the modules read at run time."""
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kalm").rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".json") for name in data)
    with zipfile.ZipFile(wheel) as archive:
        assert data <= set(archive.namelist())


def test_the_wheel_names_licence_command_and_distribution(wheel):
    """The distribution is kalm-rl, the licence text is inside, `kalm` is a command."""
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")).rpartition("/")[0]
        metadata = archive.read(f"{info}/METADATA").decode("utf-8")
        assert "Name: kalm-rl" in metadata
        assert "License-Expression: Apache-2.0" in metadata
        assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")
        assert "kalm = kalm.__main__:main" in archive.read(f"{info}/entry_points.txt").decode("utf-8")


def test_an_unpacked_wheel_imports_its_own_callbacks(wheel, tmp_path):
    """Away from the checkout, `kalm.callbacks` is the folder inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import kalm.callbacks as c; sys.stdout.write(c.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert Path(done.stdout) == tmp_path / "kalm" / "callbacks" / "__init__.py"


def test_the_checkout_maps_callbacks_into_the_package():
    """The editable installation that the tests run on."""
    import kalm.callbacks

    assert Path(kalm.callbacks.__file__).parent.resolve() == ROOT / "callbacks"


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_every_requirement_is_pinned_within_its_bounds():
    """constraints.txt names a version for each dependency, and one that pyproject.toml allows."""
    pins = _pins()
    required = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["dev"]]
    assert len(required) > 20
    for requirement in map(Requirement, required):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version), (
            f"{requirement.name}=={version} is outside {requirement.specifier}"
        )


def test_every_import_is_a_declared_dependency():
    """What comes along with something else today may be gone tomorrow."""
    distributions = packages_distributions()
    declared = {canonicalize_name(Requirement(line).name) for line in PYPROJECT["project"]["dependencies"]}
    missing = {
        f"{module} ({path.relative_to(ROOT)})"
        for folder in ("kalm", "callbacks")
        for path in (ROOT / folder).rglob("*.py")
        for module in _imported_modules(path) - sys.stdlib_module_names - {"kalm", "__future__"}
        if not {canonicalize_name(name) for name in distributions.get(module, [module])} & declared
    }
    assert missing == set()


def _imported_modules(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, at the top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.partition(".")[0])
    return modules


def test_pins_have_no_local_part():
    """`torch==x+cpu` would exist on one index only."""
    assert [f"{name}=={version}" for name, version in _pins().items() if "+" in version] == []
