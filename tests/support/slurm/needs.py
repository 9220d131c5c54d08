"""What a real SLURM of our own needs of the machine, and which of it is not here."""

import functools
import os
import shutil
import subprocess

from tests.support.slurm.machine import NAMESPACES

PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Where programs are, daemons on Debian included."""

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "unshare", "nsenter")

INSTALL = (
    "apt-get install -y --no-install-recommends "
    "slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core mariadb-client-core"
)


@functools.cache
def lacking() -> str | None:
    """Why there can be no SLURM here; None where there can."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if absent:
        return f"no SLURM here ({', '.join(absent)} missing); to install it: {INSTALL}"
    if os.geteuid() != 0:
        return "SLURM's virtual nodes need root"
    mount = ("mount", "--bind", "/etc/hosts", "/etc/hosts")
    tried = subprocess.run([*NAMESPACES, *mount], capture_output=True, text=True, check=False, timeout=60)
    if tried.returncode != 0:
        return f"SLURM's virtual nodes need namespaces and mounts, which fail here: {tried.stderr.strip()}"
    return None
