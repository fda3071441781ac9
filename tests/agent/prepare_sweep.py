"""Makes a sweep's folder with a payload in it, as a launch does, but submits nothing; run by the tests as a script.

Usage: prepare_sweep.py SWEEP_DIR OVERRIDES_AS_JSON, in the folder of ``app.py`` whose ``main`` is the user's function.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.types import HydraContext, RunMode

from clusterduck.launch import freeze
from clusterduck.launch.payload import Payload, UserSide
from clusterduck.launch.plain import divide
from clusterduck.paths import SweepPaths


def prepare(sweep_dir: str, overrides: list[list[str]]) -> None:
    app = runpy.run_path("app.py", run_name="script")  # no importable module: pickled by value, like a script's own
    hydra = Hydra.create_main_hydra_file_or_module(os.path.abspath("app.py"), None, None, "app")
    config = hydra.compose_config(app.get("CONFIG_NAME"), [f"hydra.sweep.dir={sweep_dir}"], RunMode.MULTIRUN)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
    plain, own = divide(UserSide.capture(app["main"].__wrapped__, config, context))
    payload = Payload(
        first_run=0,
        overrides=overrides,
        sys_path=[os.getcwd(), *sys.path],
        cwd=os.getcwd(),
        sources=freeze.freeze(config, os.getcwd()).sources,
        script=os.path.abspath("app.py"),
        module=None,
        function="main",
        user=own,
        plain=plain,
    )
    paths = SweepPaths.of(Path(sweep_dir), "app-abcde")
    paths.create()
    paths.launch(0).mkdir()
    with os.fdopen(os.open(paths.payload(0), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(payload.dump())


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    prepare(sys.argv[1], json.loads(sys.argv[2]))
