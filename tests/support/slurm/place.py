"""Where a cluster is: a folder and ports that no other has."""

import shutil
import socket
from pathlib import Path

from tests.support.slurm.settings import FIRST_PORT

_FIRST_PORTS = range(FIRST_PORT, 16000, 32)
"""Where clusters look for ports: below those that Linux gives to clients (from 32768) and submitit to tasks (20000)."""


class Place:
    """A folder and consecutive ports, held until `leave`. Of a process that was killed the next one takes both over."""

    def __init__(self, ports: int) -> None:
        assert ports <= _FIRST_PORTS.step
        for first in _FIRST_PORTS:
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(
                    f"\0isoplan tests: ports from {first}"
                )  # a name in the kernel, which is gone with us
                self.ports = range(first, first + ports)
                for port in self.ports:
                    _be_free(port)
            except OSError:
                claim.close()
                continue
            self._claim = claim
            # Sockets in it must have short names (108 bytes), which pytest's own folders do not leave room for.
            self.folder = Path(f"/tmp/isoplan-slurm-{first}")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            return
        raise AssertionError("no free ports")

    def leave(self) -> None:
        """Remove the folder, and let others have the ports."""
        shutil.rmtree(self.folder)
        self._claim.close()


def _be_free(port: int) -> None:
    """OSError where a port is taken."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what only lingers is free, as to SLURM
        tried.bind(("", port))
