"""A cluster's settings: what SLURM reads."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FIRST_PORT = 10000
"""Of the first cluster on this machine."""

HEAD = "head"
"""The host name of the machine with the controller and the accounts."""

DATABASE = "slurm"
"""The name of the accounts' database."""


@dataclass(frozen=True)
class Settings:
    """Of a cluster whose files are all in `folder`."""

    folder: Path
    nodes: Sequence[str]
    cpus: int
    memory_mb: int
    gpus: int
    ports: Sequence[int]

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF names; SLURM finds its other settings beside it."""
        return self.folder / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """Where who is who is asked."""
        return self.folder / "munge.socket"

    @property
    def hosts(self) -> Path:
        """The machines' /etc/hosts."""
        return self.folder / "hosts"

    @property
    def logs(self) -> Path:
        """The folder of what the daemons say."""
        return self.folder / "log"

    @property
    def database(self) -> Path:
        """The accounts' database, on a file system in memory that only the head has."""
        return self.folder / "database"

    def write(self) -> None:
        """Make everything in the folder that the daemons expect."""
        for folder in (self.logs, self.database, *(self.folder / node for node in self.nodes)):
            folder.mkdir()
        for place in range(self.gpus):  # /dev/null: SLURM counts and hands out devices only
            os.mknod(self.folder / f"gpu{place}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        self.slurm_conf.write_text(self._slurm())
        slurmdbd = self.folder / "slurmdbd.conf"
        slurmdbd.touch(mode=0o600)  # slurmdbd refuses one that others may read
        slurmdbd.write_text(self._slurmdbd())
        # No cgroups; but slurmd starts a plugin of theirs, and the one for v1 alone asks nothing of the machine then.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").write_text(self._gres())
        addresses = [f"{_address(place)} {node}" for place, node in enumerate(self.nodes)]
        self.hosts.write_text("\n".join((f"127.0.0.1 localhost {HEAD}", *addresses, "")))

    def _slurm(self) -> str:
        controller, accounts, *slurmds = self.ports
        first_job = 1 + 100 * (controller - FIRST_PORT)
        nodes = "\n".join(
            f"NodeName={node} NodeAddr={_address(place)} Port={slurmds[place]}"
            for place, node in enumerate(self.nodes)
        )
        return f"""\
ClusterName=isoplan
SlurmctldHost={HEAD}(127.0.0.1)
SlurmctldPort={controller}
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmctldLogFile={self.logs}/slurmctld.log
StateSaveLocation={self.folder}/state
SlurmdPidFile={self.folder}/%n/slurmd.pid
SlurmdLogFile={self.logs}/%n.log
SlurmdSpoolDir={self.folder}/%n/spool
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
MailProg=/bin/true
# What jobs may ask for, and what is refused at once.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
MaxArraySize=8
# Ranks meet at a port that is drawn by the job's number: no two clusters here may have the same.
FirstJobId={first_job}
EnforcePartLimits=ALL
AccountingStorageEnforce=associations,limits,qos
# Accounts.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounts}
AccountingStoragePass={self.munge_socket}
AccountingStorageTRES=gres/gpu
# Short times: a requeued job waits until its credential has expired.
AuthInfo=socket={self.munge_socket},cred_expire=5
KillWait=5
SlurmdTimeout=10
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=100000,kill_invalid_depend
# Who gives way to whom.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=DEFAULT CPUs={self.cpus} RealMemory={self.memory_mb} Gres=gpu:{self.gpus} State=UNKNOWN
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=UNLIMITED DefMemPerCPU=100 State=UP
PartitionName=main PriorityTier=10 PreemptMode=OFF Default=YES
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=low0 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high PriorityTier=100 PreemptMode=OFF
PartitionName=short PriorityTier=10 PreemptMode=OFF MaxTime=10 MaxNodes=2
"""

    def _slurmdbd(self) -> str:
        return f"""\
AuthInfo={self.munge_socket}
DbdHost={HEAD}
DbdAddr=127.0.0.1
DbdPort={self.ports[1]}
LogFile={self.logs}/slurmdbd.log
PidFile={self.folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc={DATABASE}
"""

    def _gres(self) -> str:
        return f"NodeName={','.join(self.nodes)} Name=gpu File={self.folder}/gpu[0-{self.gpus - 1}]\n"


def _address(place: int) -> str:
    return f"127.0.1.{1 + place}"
