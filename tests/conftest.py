"""What holds for all tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take minutes: begun last, they leave all workers but one idle."""
    items.sort(key=lambda item: "test_configs" not in item.nodeid)
