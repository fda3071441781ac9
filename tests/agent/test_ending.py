"""A run's process ends as a program of the user's would, though what the fork server had loaded is left as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

USERS = """
import atexit, builtins, ctypes, json, os, sys, threading, time, weakref
from omegaconf import OmegaConf
sys.stdout.reconfigure(line_buffering=True)
class Tells:
    def __init__(self, name): self.name = name
    def __del__(self, write=os.write): write(1, f"{self.name} is gone\\n".encode())
class Ring(Tells):
    def __del__(self):
        import string
        super().__del__()
def go_on():
    while threading.main_thread().is_alive(): time.sleep(0.001)
    print("thread")
of_module, _hidden, ring, finalized = Tells("global"), Tells("hidden"), Ring("ring"), Tells("finalized")
ring.ring = ring
json.users, builtins.users = go_on, go_on  # a function holds its module's variables
del ring
weakref.finalize(finalized, print, "finalizer")
unflushed = open("unflushed", "w")
unflushed.write("all of it")
def at_exit():
    import decimal
    print("at exit", decimal.Decimal(1))
atexit.register(at_exit)
OmegaConf.register_new_resolver("users", go_on)
threading.Thread(target=go_on).start()
libc = ctypes.CDLL(None)
libc.strdup.restype = ctypes.c_void_p
libc.__cxa_atexit(libc.puts, ctypes.c_void_p(libc.strdup(b"at C's exit")), None)
print("end of main")
"""

PROGRAM = """
import sys
sys.path.insert(0, "")
from clusterduck.agent import ending
ending.begin()
import atexit, gc, json, os
import hydra
ending.keep_loaded()
gc.freeze()
{users}
{end}
"""

LEFT = """
json.left = type("Left", (), {"__del__": lambda self, write=os.write: write(1, b"json is gone\\n")})()
"""

#: The way a program ends by itself.
PYTHONS = "atexit.unregister(ending._leave_out_loaded); sys.exit(3)"


def run(end: str, folder: Path, users: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program that ends in this way; its streams are buffered, whatever the tests' are."""
    script = PROGRAM.format(users=users, end=end)
    environ = {**os.environ, "PYTHONUNBUFFERED": ""}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=folder, env=environ, text=True, check=False, **options
    )


def traces(folder: Path, end: str) -> tuple[int, list[str], str, str]:
    """Exit code, lines of stdout, stderr, and what is in a file that nobody closed."""
    folder.mkdir()
    (folder / "users.py").write_text(USERS)
    done = run(end, folder, f"{LEFT}import users")
    return done.returncode, done.stdout.splitlines(), done.stderr, (folder / "unflushed").read_text()


def test_less_is_taken_apart_at_the_end_and_nothing_of_the_users_is_lost(tmp_path: Path) -> None:
    code, lines, stderr, file = traces(tmp_path / "python", PYTHONS)
    assert (code, len(lines), stderr, file) == (3, 10, "", "all of it"), lines
    lines.remove("json is gone")  # which tells that this one did less
    assert traces(tmp_path / "ours", "ending.end(3)") == (code, lines, stderr, file)


def test_what_cannot_be_written_has_the_exit_code_that_python_gives_it(tmp_path: Path) -> None:
    for end in PYTHONS, "ending.end(3)":
        with Path("/dev/full").open("w") as full:
            done = run(end, tmp_path, "print('lost')", stdout=full)
        assert done.returncode == 120
        assert done.stderr.count("No space left on device") == 1
