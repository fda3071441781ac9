"""Config files are read once, at launch; what the runs compose comes from memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from clusterduck.launch import freeze

CHILD = """
import json, sys
from hydra.core.singleton import Singleton
from clusterduck.launch import freeze
sources, config_dir, overrides = json.load(sys.stdin)
freeze.install(sources)
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
out = []
with initialize_config_dir(config_dir=config_dir, version_base="1.3"):
    for override in overrides:
        config = compose(config_name="config", overrides=override, return_hydra_config=True)
        with open_dict(config):
            del config["hydra"]
        out.append(OmegaConf.to_container(config))
print(json.dumps(out))
"""


@pytest.fixture(autouse=True)
def no_hydra(hydra_restore_singletons: None) -> Any:
    yield
    GlobalHydra.instance().clear()


def master_config(folder: Path, overrides: list[str] | None = None) -> Any:
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        return compose("config", overrides=overrides or [], return_hydra_config=True)


def compose_elsewhere(sources: dict[str, dict[str, str]], folder: Path, *overrides: list[str]) -> list[Any]:
    """Compose in a fresh interpreter that has installed ``sources``."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([sources, str(folder), overrides]),
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    (folder / "db").mkdir(parents=True)
    (folder / "config.yaml").write_text("defaults:\n  - db: mysql\n  - _self_\nlr: 0.1\n")
    (folder / "db" / "mysql.yaml").write_text("driver: mysql\n")
    (folder / "db" / "pg.yaml").write_text("# @package other\ndriver: pg\n")
    return folder


def test_runs_see_the_files_of_the_moment_of_launch(conf: Path) -> None:
    frozen = freeze.freeze(master_config(conf), str(conf.parent))
    (conf / "config.yaml").write_text("lr: 999\n")
    (conf / "db" / "mysql.yaml").write_text("driver: changed\n")
    (conf / "db" / "pg.yaml").unlink()
    assert compose_elsewhere(frozen.sources, conf, [], ["db=pg", "lr=3"]) == [
        {"db": {"driver": "mysql"}, "lr": 0.1},
        {"other": {"driver": "pg"}, "lr": 3},
    ]
    assert not frozen.warnings


def test_the_same_is_composed_again_and_again(conf: Path) -> None:
    """Parsed YAML is shared between compositions, and each takes the defaults list out of it: of its own copy."""
    frozen = freeze.freeze(master_config(conf), str(conf.parent))
    first, second, third = compose_elsewhere(frozen.sources, conf, ["lr=1"], ["+db.user=x"], [])
    assert first == {"db": {"driver": "mysql"}, "lr": 1}
    assert second == {"db": {"driver": "mysql", "user": "x"}, "lr": 0.1}
    assert third == {"db": {"driver": "mysql"}, "lr": 0.1}


@pytest.mark.parametrize("where", ["main config", "command line"])
def test_hydra_searchpath_is_frozen(conf: Path, where: str) -> None:
    more = conf.parent / "more"
    (more / "db").mkdir(parents=True)
    (more / "db" / "extra.yaml").write_text("driver: extra\n")
    overrides = []
    if where == "main config":
        text = (conf / "config.yaml").read_text()
        (conf / "config.yaml").write_text(f"{text}hydra:\n  searchpath:\n    - file://{more}\n")
    else:
        overrides = [f"hydra.searchpath=[file://{more}]"]
    frozen = freeze.freeze(master_config(conf, overrides), str(conf.parent))
    (more / "db" / "extra.yaml").unlink()
    more.joinpath("db").rmdir()
    more.rmdir()
    assert compose_elsewhere(frozen.sources, conf, [*overrides, "db=extra"]) == [{"db": {"driver": "extra"}, "lr": 0.1}]


def test_a_package_is_frozen(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = conf.parent / "ducks_for_freeze_test"
    (package / "conf" / "db").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "conf" / "__init__.py").touch()
    (package / "conf" / "db" / "pkg.yaml").write_text("driver: pkg\n")
    monkeypatch.syspath_prepend(str(conf.parent))
    overrides = ["hydra.searchpath=[pkg://ducks_for_freeze_test.conf]"]
    frozen = freeze.freeze(master_config(conf, overrides), str(conf.parent))
    assert frozen.sources["pkg://ducks_for_freeze_test.conf"] == {"db/pkg.yaml": "driver: pkg\n"}
    # the other interpreter cannot import the package, and need not
    assert compose_elsewhere(frozen.sources, conf, [*overrides, "db=pkg"]) == [{"db": {"driver": "pkg"}, "lr": 0.1}]


def test_hydras_own_configs_are_not_carried_along(conf: Path) -> None:
    assert list(freeze.freeze(master_config(conf), str(conf)).sources) == [f"file://{conf}"]


def test_a_file_that_is_not_there_is_named(conf: Path) -> None:
    with pytest.raises(AssertionError, match=r"Could not find .db/pg2"):
        compose_elsewhere(freeze.freeze(master_config(conf), str(conf)).sources, conf, ["db=pg2"])


def test_invalid_yaml_that_no_run_uses_does_no_harm(conf: Path) -> None:
    (conf / "db" / "broken.yaml").write_text("a: [1\n")
    (conf / "db" / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    frozen = freeze.freeze(master_config(conf), str(conf))
    assert compose_elsewhere(frozen.sources, conf, ["lr=2"]) == [{"db": {"driver": "mysql"}, "lr": 2}]


def test_outputs_are_not_walked(conf: Path) -> None:
    """config_path="." with old outputs beside the configs."""
    for number in range(3):
        (conf / "multirun" / f"day{number}" / "0" / "deep.yaml").parent.mkdir(parents=True)
        (conf / "multirun" / f"day{number}" / "0" / "deep.yaml").touch()
        (conf / "elsewhere" / f"{number}" / ".hydra").mkdir(parents=True)
        (conf / "elsewhere" / f"{number}" / "result.yaml").touch()
    (conf / "sweeps").mkdir()
    (conf / "sweeps" / "multirun.yaml").touch()
    (conf / "sweeps" / "more").mkdir()
    (conf / "sweeps" / "more" / "x.yaml").touch()
    (conf / ".hidden").mkdir()
    (conf / ".hidden" / "x.yaml").touch()
    frozen = freeze.freeze(master_config(conf), str(conf))
    assert sorted(frozen.sources[f"file://{conf}"]) == ["config.yaml", "db/mysql.yaml", "db/pg.yaml"]


def test_a_group_that_outputs_go_to_is_a_group_all_the_same(conf: Path) -> None:
    """hydra.sweep.dir=db/${now:...}: below the group, not the group itself."""
    (conf / "db" / "2024" / "0" / ".hydra").mkdir(parents=True)
    (conf / "db" / "2024" / "0" / "result.yaml").touch()
    config = master_config(conf, ["hydra.sweep.dir='db/${now:%Y}'"])
    names = freeze.freeze(config, str(conf)).sources[f"file://{conf}"]
    assert sorted(names) == ["config.yaml", "db/mysql.yaml", "db/pg.yaml"]


@pytest.mark.parametrize("what", ["data", "environment", "node_modules"])
def test_what_holds_no_configs_does_not_count(conf: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(freeze, "MAX_ENTRIES", 60)
    monkeypatch.setattr(freeze, "MAX_ENTRIES_WITHOUT_YAML", 40)
    folder = conf / what
    folder.mkdir()
    if what == "environment":
        (folder / "pyvenv.cfg").touch()
    if what == "data":
        folder = folder / "images"
        folder.mkdir()
    for number in range(50):
        (folder / f"{number}.png").touch()
        (folder / f"more{number}").mkdir()
        (folder / f"more{number}" / "x.json").touch()
    if what != "data":
        (folder / "x.yaml").touch()
    frozen = freeze.freeze(master_config(conf), str(conf))
    assert not frozen.warnings
    assert sorted(frozen.sources[f"file://{conf}"]) == ["config.yaml", "db/mysql.yaml", "db/pg.yaml"]


def test_the_sweep_folder_is_not_walked_even_below_the_configs(conf: Path) -> None:
    (conf / "out" / "a" / "b").mkdir(parents=True)
    (conf / "out" / "a" / "x.yaml").touch()
    config = master_config(conf, [f"hydra.sweep.dir={conf}/out"])
    assert not any(name.startswith("out") for name in freeze.freeze(config, str(conf)).sources[f"file://{conf}"])


def test_links_in_a_circle_end(conf: Path) -> None:
    (conf / "db" / "again").symlink_to(conf)
    names = freeze.freeze(master_config(conf), str(conf)).sources[f"file://{conf}"]
    assert sorted(names) == ["config.yaml", "db/mysql.yaml", "db/pg.yaml"]


def test_a_linked_group_is_frozen(conf: Path) -> None:
    shared = conf.parent / "shared"
    shared.mkdir()
    (shared / "s.yaml").write_text("driver: shared\n")
    (conf / "db2").symlink_to(shared)
    frozen = freeze.freeze(master_config(conf), str(conf))
    (shared / "s.yaml").unlink()
    assert compose_elsewhere(frozen.sources, conf, ["+db2=s"])[0]["db2"] == {"driver": "shared"}


def test_a_source_that_is_no_folder_of_configs_is_left_with_a_warning(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "MAX_ENTRIES", 20)
    monkeypatch.setattr(freeze, "MAX_ENTRIES_WITHOUT_YAML", 15)
    for number in range(30):
        (conf / f"data{number}").touch()
    frozen = freeze.freeze(master_config(conf), str(conf))
    assert frozen.sources == {}
    assert f"file://{conf} holds more than 20 files" in frozen.warnings[0]
    # such a source is read where it is
    (conf / "config.yaml").write_text("lr: 7\n")
    assert compose_elsewhere(frozen.sources, conf, []) == [{"lr": 7}]


def test_thousands_of_old_outputs_cost_little(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looked_at.append(str(path)), scandir(path))[1])
    for number in range(300):
        (conf / "outputs" / "2024-01-01" / f"{number}" / ".hydra").mkdir(parents=True)
    freeze.freeze(master_config(conf), str(conf))
    assert sorted(looked_at) == [str(conf), str(conf / "db"), str(conf / "outputs")]
