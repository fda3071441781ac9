"""The disk that all virtual machines start from: Debian with NFS, Slurm, ssh and Python; made once, in a minute.

Needs root, Debian, and its package mirror. What is missing on this machine (see :data:`PACKAGES`) is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

#: Debian's packages that this machine needs, by a program of each.
PACKAGES = {
    "linux.uml": "user-mode-linux",
    "debootstrap": "debootstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ip": "iproute2",
}

#: Debian's release, and what is installed in the machines beside the smallest system. Its Python is 3.11.
RELEASE = "bookworm"
INSIDE = (
    "kmod,iproute2,procps,nfs-common,nfs-kernel-server,openssh-server,munge,slurmctld,slurmd,slurm-client,python3,"
    "sqlite3"
)
PYTHON_INSIDE = "3.11"

UML_MODULES = Path("/usr/lib/uml/modules")

#: What the kernel starts: the rest comes from the folder that the machine shares with this one.
INIT = """\
#!/bin/bash
/bin/mount -t proc proc /proc
for word in $(</proc/cmdline); do case $word in duck_*=*) export "$word" ;; esac; done
/bin/mount -t hostfs none /host -o "$duck_host"
exec /bin/bash /host/guest-init
"""


class ImageError(RuntimeError):
    """The image cannot be made here."""


def install_what_is_missing() -> None:
    """Install the packages that this machine lacks.

    Raises:
        ImageError: if that is not possible.
    """
    if os.geteuid() != 0:
        raise ImageError("root is needed: to make the image, and for a network of its own")
    missing = sorted({package for program, package in PACKAGES.items() if not shutil.which(program)})
    if missing:
        _call("apt-get", "update", "-q")
        _call("apt-get", "install", "-y", "-q", "--no-install-recommends", *missing)


def build(folder: Path) -> None:
    """Make the image in ``folder``, unless it is there.

    Raises:
        ImageError: with the words of what failed.
    """
    if (folder / "root.img").exists():
        return
    root = folder / "root"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _call("debootstrap", "--variant=minbase", f"--include={INSIDE}", RELEASE, root)
    shutil.copytree(UML_MODULES, root / "lib/modules", dirs_exist_ok=True)
    for place in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / place, ignore_errors=True)
    init = root / "duck-init"
    init.write_text(INIT)
    init.chmod(0o755)
    for place in ("host", "export", "mnt/v3", "mnt/v4", "var/spool/slurmctld", "var/spool/slurmd"):
        (root / place).mkdir(exist_ok=True)
    _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
    (root / "root/.ssh").mkdir(mode=0o700)
    shutil.copy(folder / "key.pub", root / "root/.ssh/authorized_keys")
    _call("mke2fs", "-q", "-F", "-t", "ext4", "-d", root, folder / "root.new", "1536M")
    shutil.rmtree(root)
    (folder / "root.new").rename(folder / "root.img")


def packages_for_inside(project: Path, folder: Path) -> Path:
    """A folder with the project as it stands and all that it needs, for the machines' Python."""
    wheels, site = folder / "wheels", folder / "site"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    # Hydra's parser has no wheel in the index, and is the same for every Python
    _call(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, project, "antlr4-python3-runtime==4.9.3")
    where = ("--python-version", PYTHON_INSIDE, "--platform", "manylinux2014_x86_64", "--only-binary=:all:")
    (wheel,) = wheels.glob("hydra_clusterduck-*.whl")
    _call(*pip, "install", "--target", site, *where, "--find-links", wheels, wheel)
    return site


def _call(*command: str | Path) -> None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()[-1000:]}")
