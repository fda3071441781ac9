"""A payload is plain data; the user's side in it unpickles in a process that never saw the launching one."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from clusterduck.errors import ConfigError, JournalError
from clusterduck.launch import payload as module
from clusterduck.launch.carried import along_with
from clusterduck.launch.payload import (
    VERSION,
    Payload,
    UserSide,
    absolute_path_entries,
    name_of,
    origin,
    pickle_user,
)
from clusterduck.launch.plain import divide, unpickle_user

Plugins.instance()  # before any fixture restores Hydra's state, so that it restores one that knows the plugins

PLAIN: dict[str, Any] = {
    "first_run": 3,
    "overrides": [["a=1", "b=x"], ["a=2"]],
    "sys_path": ["/x"],
    "cwd": "/x",
    "sources": {"file:///x/conf": {"a.yaml": "a: 1\n"}},
    "script": "/x/train.py",
    "module": None,
    "function": "main",
    "user": b"bytes",
}

#: What a run's process does with a payload, up to composing.
CHILD = """
import sys
from clusterduck.launch import freeze
from clusterduck.launch.payload import Payload
from clusterduck.launch.plain import unpickle_user
payload = Payload.load(open(sys.argv[1], "rb").read())
freeze.install(payload.sources)
before = set(sys.modules)
sys.path[:] = payload.sys_path
user = unpickle_user(payload)
user.activate()
context = user.hydra_context
config = context.config_loader.load_sweep_config(user.config, list(payload.overrides[0]))
print(user.task_function(config))
"""


@pytest.fixture(autouse=True)
def no_hydra(hydra_restore_singletons: None) -> Any:
    yield
    GlobalHydra.instance().clear()


def context_of(folder: Path, overrides: list[str] | None = None) -> tuple[DictConfig, HydraContext]:
    hydra = Hydra.create_main_hydra_file_or_module(str(folder / "train.py"), None, "conf", "train")
    config = hydra.compose_config("config", overrides or [], RunMode.MULTIRUN)
    return config, HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))


def run_elsewhere(folder: Path, data: Payload) -> str:
    (folder / "payload.pkl").write_bytes(data.dump())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder / "payload.pkl")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("x: ${twice:21}\nlr: 0.1\n")
    OmegaConf.register_new_resolver("twice", lambda value: 2 * value, replace=True)
    return tmp_path


def payload_of(user: UserSide, overrides: list[str], **more: Any) -> Payload:
    plain, own = divide(user)
    data = {**PLAIN, "user": own, "plain": plain, "overrides": [overrides], "sources": {}, "sys_path": sys.path, **more}
    return Payload(**data)


def test_a_payload_survives_the_file() -> None:
    assert Payload.load(Payload(**PLAIN).dump()) == Payload(**PLAIN)


def test_loading_a_payload_runs_no_code() -> None:
    with pytest.raises(JournalError, match=r"names os\.getcwd|names posix\.getcwd"):
        Payload.load(pickle.dumps({"clusterduck_payload": 1, "first_run": __import__("os").getcwd}))


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps([1]), pickle.dumps({"clusterduck_payload": 1})])
def test_what_is_no_payload_is_refused(data: bytes) -> None:
    with pytest.raises(JournalError, match="payload"):
        Payload.load(data)


def test_a_newer_payload_is_refused_and_fields_to_come_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    later = pickle.dumps({**pickle.loads(Payload(**PLAIN).dump()), "more": 1})
    assert Payload.load(later) == Payload(**PLAIN)
    monkeypatch.setattr(module, "VERSION", VERSION + 1)
    newer = Payload(**PLAIN).dump()
    monkeypatch.undo()
    with pytest.raises(JournalError, match="newer clusterduck"):
        Payload.load(newer)


def test_a_payload_of_an_older_version_has_all_of_the_users_side_in_one_part() -> None:
    older = {**PLAIN, "clusterduck_payload": 1, "plain": b"repeats the configuration"}
    assert Payload.load(pickle.dumps(older)) == Payload(**PLAIN)


def test_the_configuration_is_not_sent_twice_and_stays_one(project: Path) -> None:
    config, context = context_of(project)
    context.callbacks.callbacks.append(types.SimpleNamespace(config=config))
    plain, own = divide(UserSide.capture(lambda _: (config.lr, config), config, context))
    assert plain is not None and b"multirun" in plain and b"multirun" not in own
    user = unpickle_user(Payload(**{**PLAIN, "user": own, "plain": plain}))
    assert user.hydra_context.callbacks.callbacks[-1].config is user.config
    assert user.task_function(None) == (0.1, user.config)


def test_a_local_function_a_resolver_and_the_config_arrive(project: Path) -> None:
    secret = "closure"

    def task(config: Any) -> str:
        return f"{secret} {config.x} {config.lr}"

    config, context = context_of(project)
    user = UserSide.capture(task, config, context)
    assert run_elsewhere(project, payload_of(user, ["lr=5"])) == "closure 42 5"


def test_capturing_leaves_hydra_here_as_it_was(project: Path) -> None:
    config, context = context_of(project)
    pickle_user(UserSide.capture(len, config, context))
    assert context.config_loader.load_sweep_config(config, ["lr=7"]).lr == 7
    assert GlobalHydra.instance().hydra is not None
    assert GlobalHydra.instance().hydra.config_loader.get_sources()


def test_a_function_of_a_module_beside_the_script_goes_by_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "duck_beside.py").write_text("def main(config):\n    return ('beside', config.lr)\n")
    monkeypatch.syspath_prepend(str(project))
    import duck_beside  # type: ignore[import-not-found]

    config, context = context_of(project)
    data = payload_of(UserSide.capture(duck_beside.main, config, context), [])
    assert run_elsewhere(project, data) == "('beside', 0.1)"


def test_a_plugin_beside_the_script_is_found_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's scan for plugins is made anew in a run whose sys.path has plugins that the fork server's had not."""
    folder = project / "hydra_plugins" / "duck_source"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "source.py").write_text(
        "from hydra.plugins.config_source import ConfigSource, ConfigResult\n"
        "from omegaconf import OmegaConf\n"
        "class DuckSource(ConfigSource):\n"
        "    @staticmethod\n"
        "    def scheme(): return 'duck'\n"
        "    def available(self): return True\n"
        "    def is_group(self, config_path): return config_path == 'pond'\n"
        "    def is_config(self, config_path): return config_path in ('pond/big', 'pond/big.yaml')\n"
        "    def list(self, config_path, results_filter): return ['big']\n"
        "    def load_config(self, config_path):\n"
        "        return ConfigResult('duck', 'duck://', OmegaConf.create({'size': 9}), {'package': 'pond'})\n"
    )
    monkeypatch.syspath_prepend(str(project))
    Singleton._instances.pop(Plugins, None)
    overrides = ["hydra.searchpath=[duck://]", "+pond=big"]
    config, context = context_of(project, overrides)
    data = payload_of(UserSide.capture(lambda config: config.pond.size, config, context), ["+pond=big"])
    assert run_elsewhere(project, data) == "9"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("function", r"the main function .*Stuck.*cannot be pickled"),
        ("resolver", "the OmegaConf resolver 'locked' cannot be pickled"),
        ("callback", r"the callback .*Locked cannot be pickled"),
    ],
)
def test_the_object_that_does_not_pickle_is_named(project: Path, what: str, message: str) -> None:
    lock = threading.Lock()

    class Stuck:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, config: Any) -> None: ...

        def __deepcopy__(self, memo: Any) -> Any:
            return self

    class Locked:
        def __init__(self) -> None:
            self.lock = lock

    function: Any = Stuck() if what == "function" else len
    config, context = context_of(project)
    if what == "callback":
        context.callbacks.callbacks.append(Locked())
    user = UserSide.capture(function, config, context)
    if what == "resolver":
        user.singleton_state["omegaconf_resolvers"]["locked"] = lock.acquire
    with pytest.raises(ConfigError, match=message):
        pickle_user(user)


#: A script whose main function uses, by way of another one, an object that does not pickle or unpickle.
SCRIPT = """
import threading
from clusterduck.launch.carried import along_with
class Refusing:
    def __init__(self):
        self.x = 1
    def __setstate__(self, state):
        raise ValueError("not here")
LOCK, THING, LEFT_ALONE = threading.Lock(), Refusing(), threading.Lock()
def helper():
    return [LOCK.locked() for _ in range(2)]
def make(secret):
    def main(config):
        return (lambda: THING.x)() and helper() and secret and config.LEFT_ALONE
    return main
for label, _ in along_with(make("s")):
    print(label)
"""


def test_what_a_function_of_the_script_takes_along_has_names() -> None:
    script = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert script.stdout.splitlines() == [
        "the global LOCK, which __main__.helper uses,",
        "the global helper, which __main__.make.<locals>.main uses,",
        "the global THING, which __main__.make.<locals>.main uses,",
        "the variable secret, which __main__.make.<locals>.main closes over,",
    ]


def test_a_function_that_goes_by_name_takes_nothing_along() -> None:
    assert list(along_with(subprocess.run)) == [] and list(along_with(len)) == []


def test_a_variable_that_does_not_pickle_is_named(project: Path) -> None:
    lock = threading.Lock()

    def task(config: Any) -> bool:
        return lock.locked()

    user = UserSide.capture(task, *context_of(project))
    with pytest.raises(
        ConfigError, match=r"the variable lock, which .*task closes over, cannot be pickled \(TypeError"
    ):
        pickle_user(user)


def test_where_a_function_came_from() -> None:
    assert origin(test_where_a_function_came_from) == (None, __name__, "test_where_a_function_came_from")
    script = subprocess.run(
        [sys.executable, "-c", "from clusterduck.launch.payload import origin\ndef f(c): ...\nprint(origin(f))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert script.stdout.strip() == "(None, None, 'f')"
    assert name_of(__import__("functools").partial(len)) == "builtins.len"


def test_path_entries_are_made_absolute_in_order() -> None:
    assert absolute_path_entries(["", "lib", "/usr/lib", "../up"], "/a/b") == ["/a/b", "/a/b/lib", "/usr/lib", "/a/up"]
