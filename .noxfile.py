"""The tests on every supported Python with every supported Hydra: ``nox -f .noxfile.py``; with ``-l`` it lists them."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
HYDRAS = ["==1.3.2", "~=1.3.2", "==1.4.0rc3"]


@nox.session(python=PYTHONS)
@nox.parametrize("hydra", HYDRAS, ids=["1.3.2", "1.3.x", "1.4.0rc3"])
def tests(session: nox.Session, hydra: str) -> None:
    """All tests but those of packaging; arguments after ``--`` go to pytest."""
    pre = ["--pre"] if "rc" in hydra else []
    session.install(*pre, f"hydra-core{hydra}", "hydra-optuna-sweeper")
    session.install(".[test,examples]")
    session.run("pytest", *session.posargs)


@nox.session(python=["3.11"])
def packaging(session: nox.Session) -> None:
    """The wheel and editable installs, each in fresh environments."""
    session.install(".[test,examples]")
    session.run("pytest", "-m", "packaging", *session.posargs)


@nox.session(python=["3.11"])
def lint(session: nox.Session) -> None:
    """Ruff, mypy and import-linter, in the versions that CI uses."""
    session.install(".[test,examples]", "-r", ".ci/requirements-lint.txt")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
