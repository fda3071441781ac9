from __future__ import annotations

from pathlib import Path

import pytest
from made_project import Project, make


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that no test changes."""
    return make(tmp_path_factory.mktemp("project"))


@pytest.fixture
def own(tmp_path: Path) -> Project:
    """A project of the test's own."""
    return make(tmp_path)
