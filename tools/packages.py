"""Installs the Debian packages that some tests need, where that is possible: as root, with apt. Elsewhere they skip.

Tests say themselves what they miss; nothing here is needed to train.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "strace": "strace",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "g++": "g++",
    "zsh": "zsh",
    "fish": "fish",
    "ip": "iproute2",
    "iptables": "iptables",
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "slurmctld": "slurm-wlm",
    "slurmdbd": "slurmdbd",
}
"""Command -> the package that has it."""

# Daemons are started by the tests that need them, and by nothing else.
_NO_SERVICES = Path("/usr/sbin/policy-rc.d")


def main() -> int:
    """Installs what is missing; returns 0, for a test that cannot run is skipped with its reason."""
    where = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    missing = sorted({package for command, package in PACKAGES.items() if shutil.which(command, path=where) is None})
    if not missing:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"tests        some will be skipped: they need {', '.join(missing)}", flush=True)
        return 0
    print(f"tests        installing {', '.join(missing)}", flush=True)
    done = install(missing)
    if done.returncode:
        sys.stderr.write(f"warning: apt-get could not install them, so some tests are skipped\n{done.stderr[-2000:]}\n")
    return 0


def install(packages: list[str]) -> "subprocess.CompletedProcess[str]":
    """Runs apt-get, with the lists brought up to date where that is needed."""
    denies = not _NO_SERVICES.exists()
    if denies:
        _NO_SERVICES.write_text("#!/bin/sh\nexit 101\n")
        _NO_SERVICES.chmod(0o755)
    try:
        done = apt("install", "-y", "--no-install-recommends", *packages)
        if done.returncode:
            apt("update")
            done = apt("install", "-y", "--no-install-recommends", *packages)
    finally:
        if denies:
            _NO_SERVICES.unlink()
    return done


def apt(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """One apt-get."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-q", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
