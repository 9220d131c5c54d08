"""A machine within this one: a host name, processes and mounts of its own, and a plug that can be pulled.

Its first process waits for the end of its input, which is a pipe from us. Where that process ends, the kernel kills all
others of its PID namespace; so nothing runs on when we are done, nor when we are killed.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

NAMESPACES = ("unshare", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child=KILL", "--")

_FIRST_PROCESS = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
echo on
read -r _
"""
"""bash, since it also reaps what daemons leave to the first process."""


@dataclass(frozen=True)
class Process:
    """A process of a machine."""

    pid: int
    """As we see it: what our `os.kill` takes."""
    inner_pid: int
    """As the machine sees it: what `os.getpid()` gives there."""
    command: str
    """Its words, with blanks between them."""
    environment: Mapping[str, str] = field(repr=False)
    """What it was started with."""


class Machine:
    """A machine that is on; its name resolves in it by the lines of `hosts`."""

    def __init__(self, name: str, hosts: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        """Where the output of its daemons goes."""
        self._environment = dict(environment)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*NAMESPACES, "bash", "-c", _FIRST_PROCESS, "-", name, str(hosts)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env=self._environment,
                start_new_session=True,  # control-C at a terminal is for pytest alone
            )
        try:
            self._first = self._switched_on(timeout_s=60)
        except BaseException:
            self._process.kill()
            self._unplug()
            raise
        self._namespace = os.readlink(f"/proc/{self._first}/ns/pid")

    def _switched_on(self, timeout_s: float) -> int:
        """The PID of its first process, once that has done its part."""
        assert self._process.stdout is not None
        answers, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not answers or self._process.stdout.readline() != b"on\n":
            raise AssertionError(f"{self.name} does not start: {self._log.read_text()}")
        unshare = self._process.pid
        return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text())

    def run(self, *argv: str, timeout_s: float = 60) -> str:
        """What a command prints that is run on it as root."""
        done = subprocess.run(
            self._there(*argv),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} on {self.name}: exit {done.returncode}: {done.stdout}")
        return done.stdout

    def start(self, *argv: str, **environment: str) -> None:
        """Start a daemon, which goes to the background by itself."""
        with self._log.open("ab") as out:
            done = subprocess.run(
                self._there(*argv),
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                check=False,
                timeout=60,
            )
        if done.returncode != 0:
            raise AssertionError(
                f"{argv[0]} on {self.name}: exit {done.returncode}: {self._log.read_text()[-2000:]}"
            )

    def stop(self, program: str, timeout_s: float = 60) -> None:
        """End a daemon in an orderly way."""
        deadline = time.monotonic() + timeout_s
        for process in self._running(program):
            os.kill(process.pid, signal.SIGTERM)
            while Path(f"/proc/{process.pid}").exists():
                if time.monotonic() > deadline:
                    raise AssertionError(f"{program} on {self.name} has not stopped in {timeout_s:.0f} s")
                time.sleep(0.02)

    def runs(self, program: str) -> bool:
        """Whether a program is at work on it."""
        return bool(self._running(program))

    def _running(self, program: str) -> list[Process]:
        return [
            process for process in self.processes() if Path(process.command.split(" ")[0]).name == program
        ]

    def processes(self) -> list[Process]:
        """All that run on it, the oldest first as a rule."""
        pids = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
        return [process for pid in pids if (process := self._process_of(pid)) is not None]

    def _process_of(self, pid: int) -> Process | None:
        """What a PID is, unless it is of elsewhere, gone, or dead and not yet reaped."""
        about = Path(f"/proc/{pid}")
        try:
            if os.readlink(about / "ns/pid") != self._namespace:
                return None
            command = (about / "cmdline").read_bytes()
            environment = (about / "environ").read_bytes()
            (inner,) = (
                line.split()[-1]
                for line in (about / "status").read_text().splitlines()
                if line.startswith("NSpid:")
            )
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        if not command:
            return None
        pairs = (pair.partition("=") for pair in _words(environment))
        return Process(
            pid=pid,
            inner_pid=int(inner),
            command=" ".join(_words(command)),
            environment={key: value for key, _, value in pairs},
        )

    def cut(self) -> None:
        """Cut its power: all its processes are gone when this returns."""
        if self._process.poll() is None:
            os.kill(self._first, signal.SIGKILL)  # dead only once all others are, and unshare waits for it
        self._unplug()

    def _unplug(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.wait(timeout=60)
        self._process.stdin.close()
        self._process.stdout.close()

    def _there(self, *argv: str) -> list[str]:
        inside = ("--uts", "--pid", "--mount", "--root", "--wd")
        return ["nsenter", "--target", str(self._first), *inside, "--", *argv]


def _words(zero_ended: bytes) -> list[str]:
    return zero_ended.decode(errors="replace").rstrip("\0").split("\0")
