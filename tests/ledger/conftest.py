"""What the ledger's tests share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from clusterduck.ledger import schema


@pytest.fixture(scope="session")
def empty() -> Callable[[], sqlite3.Connection]:
    """Makes replicas in memory, empty but for their tables."""
    template = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(template, "the template")

    def make() -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        template.backup(connection)
        return connection

    return make
