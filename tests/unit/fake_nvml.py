"""A fake libnvidia-ml.so.1, built with gcc, so that the real pynvml binding runs on machines without a GPU.

It is no NVIDIA driver: it makes up GPUs as environment variables say. GPU i has the UUID ``GPU-fake<i>…``, hangs on PCI
bus ``10 + i`` (hexadecimal), is (i + 1) * 10 % busy and uses (i + 1) GiB.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clusterduck.agent.nvml import Nvml

SOURCE = r"""
/* A FAKE of NVIDIA's management library, for tests only. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, LOST = 15 };
typedef struct { int index, part; } gpu;            /* part: -1, or which MIG device of the GPU */
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci;
static gpu gpus[64], parts[64][7];
static int number(const char *name, int other) { const char *s = getenv(name); return s && *s ? atoi(s) : other; }
static void note(const char *what, gpu *g) {
  const char *path = getenv("FAKE_NVML_CALLS"); FILE *f;
  if (path && (f = fopen(path, "a"))) { fprintf(f, "%s %d\n", what, g->index); fclose(f); } }
int nvmlInitWithFlags(unsigned flags) { return number("FAKE_NVML_INIT", OK); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return "a fake error"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = number("FAKE_NVML_GPUS", 0); return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, gpu **g) {
  if (i >= (unsigned)number("FAKE_NVML_GPUS", 0)) return INVALID;
  if ((int)i < number("FAKE_NVML_DENIED", 0)) return NO_PERMISSION;   /* the first so many are another job's */
  gpus[i].index = i; gpus[i].part = -1; *g = &gpus[i]; return OK; }
int nvmlDeviceGetUUID(gpu *g, char *s, unsigned n) {
  if (g->part < 0) snprintf(s, n, "GPU-fake%d-0000", g->index);
  else snprintf(s, n, "MIG-fake%d-part%d", g->index, g->part);
  return OK; }
int nvmlDeviceGetPciInfo_v3(gpu *g, pci *p) {
  memset(p, 0, sizeof *p); p->bus = 0x10 + g->index; snprintf(p->bus_id, 32, "00000000:%02X:00.0", p->bus); return OK; }
int nvmlDeviceGetUtilizationRates(gpu *g, unsigned *u) {
  note("load", g);
  if (g->index == number("FAKE_NVML_LOST", -1)) return LOST;
  if (g->part >= 0) return NOT_SUPPORTED;
  u[0] = (g->index + 1) * 10; u[1] = 1; return OK; }
int nvmlDeviceGetMemoryInfo(gpu *g, unsigned long long *m) {
  note("memory", g);
  if (g->index == number("FAKE_NVML_LOST", -1)) return LOST;
  m[0] = 80ULL << 30; m[2] = (g->index + 1ULL) << 30; m[1] = m[0] - m[2]; return OK; }
int nvmlDeviceGetMigMode(gpu *g, unsigned *now, unsigned *next) {
  if (g->index != number("FAKE_NVML_MIG", -1)) return NOT_SUPPORTED;
  *now = *next = 1; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(gpu *g, unsigned *n) { *n = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(gpu *g, unsigned i, gpu **part) {
  if (i > 1) return NOT_FOUND;
  parts[g->index][i].index = g->index; parts[g->index][i].part = i; *part = &parts[g->index][i]; return OK; }
"""


class FakeNvml:
    """The built library, and how to run Python with it in place of NVIDIA's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, script: str, **settings: object) -> Any:
        """Run a script in a fresh interpreter that finds the fake; returns what it prints, read as JSON."""
        fakes = {f"FAKE_NVML_{name}": str(value) for name, value in settings.items()}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "LD_LIBRARY_PATH": str(self.folder), **fakes},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler to build a fake NVML")
    folder = tmp_path_factory.mktemp("fake-nvml")
    (folder / "fake.c").write_text(SOURCE)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "fake.c"], check=True, timeout=180)
    return FakeNvml(folder)


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever GPUs this machine has: in this process there is no NVML. With the fake one, tests start processes."""
    monkeypatch.setattr(Nvml, "open", lambda *_: None)
