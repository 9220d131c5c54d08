"""Every Python of a job reads this first: on the node that FULL_NODE names no disk has space."""

import os
import shutil
from functools import wraps
from typing import Any

if os.environ.get("SLURMD_NODENAME") == os.environ.get("FULL_NODE", ""):
    usage = shutil.disk_usage

    @wraps(usage)
    def full(path: Any) -> Any:
        """As it is, but nothing is free."""
        return usage(path)._replace(free=0)

    shutil.disk_usage = full
