"""Small pretrained models, built once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.llm.small_models import ARCHITECTURES, save_small_model


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a small model for each architecture; read only."""
    folder = tmp_path_factory.mktemp("models")
    return {architecture: save_small_model(folder / architecture, architecture) for architecture in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def small_model(request: pytest.FixtureRequest, small_models: dict[str, Path]) -> Path:
    """Each architecture in turn."""
    return small_models[request.param]
