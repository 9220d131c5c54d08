"""A real SLURM with accounts, on this machine alone: a head with the controller and the database, and virtual nodes.

    with Cluster() as cluster:
        job = cluster.submit("-N2", "--wrap", "srun hostname")
        cluster.wait(job, "COMPLETED")

Everything is in one folder, which `down` removes; nothing else on this machine is written to. All daemons end with the
process that brought them up, even where that is killed, and several clusters can be up at a time. What is not real:
nodes share a file system, a network and the cores that there are; GPUs are names; nothing holds a task to its memory.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from tests.support.slurm.machine import Machine, Process
from tests.support.slurm.needs import PATH
from tests.support.slurm.place import Place
from tests.support.slurm.settings import DATABASE, HEAD, Settings

T = TypeVar("T")

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}
"""States that SLURM leaves as they are; after NODE_FAIL and PREEMPTED it may start a job anew."""


class Cluster:
    """A cluster that is brought up and taken down; partitions main (the default), low, low0, high and short.

    A job of `high` takes the nodes of one of `low` (which has 30 s to leave) or `low0` (none); one of `short` may ask
    for two nodes and ten minutes. An array's indices end at 7.
    """

    def __init__(self, nodes: int = 4, cpus: int = 4, memory_mb: int = 4000, gpus: int = 2) -> None:
        self.nodes = tuple(f"node{1 + place}" for place in range(nodes))
        self._sizes = (cpus, memory_mb, gpus)
        self._place: Place | None = None
        self._machines: dict[str, Machine] = {}
        """Those that are on."""

    def __enter__(self) -> "Cluster":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Bring everything up, from nothing to idle nodes."""
        try:
            self._place = Place(ports=2 + len(self.nodes))
            self._settings = Settings(self.folder, self.nodes, *self._sizes, self._place.ports)
            self._settings.write()
            self._switch_on(HEAD)
            self._start_database()
            self.start_accounting()
            self.start_controller()
            self.resume_all()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every daemon and job, and remove the cluster's files; harmless where there are none."""
        while self._machines:
            self._machines.popitem()[1].cut()
        if self._place is not None:
            self._place.leave()
            self._place = None

    @property
    def folder(self) -> Path:
        """Where all of its files are, while it is up."""
        assert self._place is not None, "the cluster is not up"
        return self._place.folder

    def environment(self) -> dict[str, str]:
        """What a client needs in its environment, besides our own."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    # Commands

    def call(self, *argv: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
        """A client's command, whatever comes of it."""
        return subprocess.run(
            argv,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def run(self, *argv: str, timeout_s: float = 60) -> str:
        """What a client's command prints; the command must succeed."""
        done = self.call(*argv, timeout_s=timeout_s)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr}\n{self.report()}")
        return done.stdout

    def submit(self, *options: str) -> str:
        """The number of a job that is handed to sbatch; what it prints is lost, unless `options` say otherwise."""
        return self.run("sbatch", "--parsable", "--output=/dev/null", *options).strip()

    def in_node(self, name: str, *argv: str, timeout_s: float = 60) -> str:
        """What a command prints that is run on a node, with the PIDs and the host name of the node."""
        return self._machines[name].run(*argv, timeout_s=timeout_s)

    # What there is

    def states(self, job: str) -> list[str]:
        """A job's present state, of an array each element's; empty where nobody knows it."""
        now = self.call("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T")
        return now.stdout.split() or self._accounts(job)[-1:]

    def history(self, job: str) -> list[str]:
        """A job's state at the end of each of its starts, the present one last; some seconds behind."""
        return self._accounts(job, "--duplicates")

    def wait_for_history(self, job: str, states: list[str]) -> None:
        """Waits until the accounts know them. Of a start that ends before they have heard of it they never learn:
        slurmctld hands them a job's beginning up to five seconds late.
        """
        self.until(lambda: self.history(job) == states, f"the accounts know job {job}'s starts as {states}")

    def _accounts(self, job: str, *options: str) -> list[str]:
        command = ("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State")
        lines = self.call(*command, *options).stdout.splitlines()
        return [line.split()[0] for line in lines]  # "CANCELLED by 0"

    def processes(self, node: str, job: str | None = None, command: str = "") -> list[Process]:
        """A node's processes, or those of a job, whose command line contains `command`; the oldest first as a rule."""
        return [
            process
            for process in self._machines[node].processes()
            if command in process.command and (job is None or job in _jobs(process.environment))
        ]

    def task(self, job: str, rank: int, command: str = "", timeout_s: float = 120) -> Process:
        """The process of a job's rank (its first with `command` in its command line), as soon as srun starts it."""

        def found() -> Process | None:
            everywhere = (process for node in self.on() for process in self.processes(node, job, command))
            of_steps = (process for process in everywhere if "SLURM_STEP_ID" in process.environment)
            return next((each for each in of_steps if each.environment["SLURM_PROCID"] == str(rank)), None)

        return self.until(found, f"job {job} has a task {rank} {command}", timeout_s)

    def on(self) -> list[str]:
        """The nodes that have power."""
        return [node for node in self.nodes if node in self._machines]

    # Waiting

    def wait(self, job: str, *states: str, timeout_s: float = 120) -> None:
        """Wait until a job, of an array every element, is in one of the states."""

        def there() -> bool:
            now = self.states(job)
            if now and set(now) <= set(states):
                return True
            if now and set(now) <= ENDED:
                raise AssertionError(
                    f"job {job} is {'/'.join(now)}, never {' or '.join(states)}\n{self.report()}"
                )
            return False

        self.until(there, f"job {job} is {' or '.join(states)}", timeout_s)

    def until(self, ask: Callable[[], T | None], what: str, timeout_s: float = 120) -> T:
        """The first answer that is not empty; past the deadline a failure that says how things stand."""
        deadline = time.monotonic() + timeout_s
        while not (answer := ask()):
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout_s:.0f} s it is not so that {what}\n{self.report()}")
            time.sleep(0.1)
        return answer

    def report(self) -> str:
        """How things stand: nodes, jobs, accounts, and what the daemons said last."""
        commands = (
            ("sinfo", "--Node", "--long", "--partition=main"),
            ("squeue", "--states=all", "--long"),
            ("sacct", "--duplicates", "--format=JobID,JobName,Partition,State,ExitCode,Start,End,NodeList"),
        )
        parts = []
        for command in commands:
            try:
                done = self.call(*command, timeout_s=30)
                parts.append(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
            except subprocess.TimeoutExpired:
                parts.append(f"$ {' '.join(command)}: no answer")
        for log in sorted((self.folder / "log").glob("*")):
            if last := log.read_text(errors="replace").splitlines()[-10:]:
                parts.append("\n".join((f"{log.name} ends with", *last)))
        return "\n\n".join(parts)

    # What can happen to it

    def kill_node(self, name: str) -> None:
        """Cut a node's power: its slurmd and all tasks are gone at once. The controller notices after 10 s and more."""
        self._machines.pop(name).cut()

    def start_node(self, name: str) -> None:
        """Switch a node on, or start its slurmd where only that is gone; it reports to the controller by itself."""
        machine = self._machines.get(name) or self._switch_on(name)
        self._start(machine, "slurmd", "-N", name)

    def fail_node(self, name: str) -> None:
        """Cut a node's power and have the controller notice at once."""
        self.kill_node(name)
        self._give_up(name)

    def orphan_node(self, name: str) -> None:
        """End a node's slurmd, and have the controller notice at once: it gives the node up, whose tasks go on."""
        self._machines[name].stop("slurmd")
        self._give_up(name)

    def stop_controller(self) -> None:
        """End slurmctld; jobs go on, commands do not answer."""
        self._machines[HEAD].stop("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld, with what it knew when it was stopped."""
        self._start(self._machines[HEAD], "slurmctld")
        self.until(lambda: "is UP" in self.call("scontrol", "ping").stdout, "slurmctld answers")

    def stop_accounting(self) -> None:
        """End slurmdbd; sacct fails, and the controller keeps what it would have told."""
        self._machines[HEAD].stop("slurmdbd")

    def start_accounting(self) -> None:
        """Start slurmdbd."""
        self._start(self._machines[HEAD], "slurmdbd", MYSQL_UNIX_PORT=self._database_socket())
        self.until(
            lambda: self.call("sacctmgr", "--noheader", "show", "cluster").returncode == 0, "slurmdbd answers"
        )

    def resume_all(self, timeout_s: float = 120) -> None:
        """Start whatever is down, cancel every job, and wait until all nodes are idle."""
        head = self._machines[HEAD]
        if not head.runs("slurmdbd"):
            self.start_accounting()
        if not head.runs("slurmctld"):
            self.start_controller()
        for node in self.nodes:
            if node not in self._machines or not self._machines[node].runs("slurmd"):
                self.start_node(node)
        self.run("scancel", "--user=root")
        self.until(self._is_idle, "every node is idle", timeout_s)

    def _is_idle(self) -> bool:
        """Whether all nodes are idle and no job is left; nodes that were given up are taken back."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        states = dict(line.split() for line in lines)
        for node, state in states.items():
            if state.startswith(("down", "drain")):
                self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        return set(states.values()) == {"idle"} and not self.run("squeue", "--noheader")

    def _give_up(self, name: str) -> None:
        """Have the controller take a node for lost."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")

    # Machines and their daemons

    def _environment(self) -> Mapping[str, str]:
        """Ours, without what it may say of another SLURM."""
        ours = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM", "SBATCH", "SACCT"))
        }
        return ours | self.environment()

    def _switch_on(self, name: str) -> Machine:
        log = self._settings.logs / f"{name}.out"
        machine = Machine(name, self._settings.hosts, log, self._environment())
        self._machines[name] = machine
        return machine

    def _start(self, machine: Machine, *argv: str, **environment: str) -> None:
        """Start a daemon; its log says why it did not."""
        try:
            machine.start(*argv, **environment)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.report()}") from None

    def _database_socket(self) -> str:
        return str(self._settings.database / "socket")

    def _start_database(self) -> None:
        """Start munged and a database that is in memory."""
        head, settings = self._machines[HEAD], self._settings
        key = settings.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._start(
            head,
            "munged",
            "--force",  # folders above ours may be open to others, as /tmp is
            f"--key-file={key}",
            f"--socket={settings.munge_socket}",
            f"--pid-file={settings.folder}/munged.pid",
            f"--log-file={settings.logs}/munged.log",
            f"--seed-file={settings.folder}/munge.seed",
        )
        head.run("mount", "-t", "tmpfs", "tmpfs", str(settings.database))
        common = (
            "--no-defaults",
            "--user=root",
            f"--datadir={settings.database}/data",
            f"--tmpdir={settings.database}",  # tables are named by PIDs, which other clusters' databases have too
            "--skip-name-resolve",
        )
        head.run("mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db")
        self._start(
            head,
            *("setsid", "--fork", "mariadbd", *common),
            f"--socket={self._database_socket()}",
            f"--pid-file={settings.database}/mariadbd.pid",
            f"--log-error={settings.logs}/mariadbd.log",
            "--skip-networking",
            # Small and quick; slurmdbd asks for no less than that time.
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=16M",
            "--innodb-lock-wait-timeout=900",
            "--loose-innodb-snapshot-isolation=OFF",  # newer ones have it on, under which slurmdbd may end
            "--innodb-flush-log-at-trx-commit=0",
            "--performance-schema=OFF",
            "--key-buffer-size=1M",
        )
        self.until(self._database_is_made, "the database answers")

    def _database_is_made(self) -> bool:
        """Whether slurmdbd's database is there. slurmdbd would make it, if the client library of MariaDB 11.8.9 did not
        refuse every result on a connection that has failed before, here for want of the database.
        """
        make = (
            "mariadb",
            "--no-defaults",
            f"--socket={self._database_socket()}",
            "--user=root",
            "-e",
            f"create database if not exists {DATABASE}",
        )
        try:
            self._machines[HEAD].run(*make)
        except AssertionError:
            return False
        return True


def _jobs(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """The names of the job that a process is of: its number, and of an array's element `array_index`."""
    array, index = (environment.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return environment.get("SLURM_JOB_ID"), f"{array}_{index}"
