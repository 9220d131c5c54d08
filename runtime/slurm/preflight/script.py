"""What a batch script does before its ranks start: the preflight's tasks, the judge, and what follows from its verdict.

The shell itself calls squeue and scontrol, since a container may not have them. A node is excluded by requeueing the
job held, with another list of nodes that it may not have; it is released only once SLURM shows that list.
"""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from runtime.slurm.preflight.judge import EXCLUDE, GO

_GRACE_S = 15
"""For srun to start and end its tasks, beside their own time."""
_EXCLUDED = (
    r"""scontrol show job -o "$job" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p' | sed 's/^(null)$//'"""
)
_SAME = '[ "$(scontrol show hostnames "$now" | sort -u)" = "$(scontrol show hostnames "$all" | sort -u)" ]'


def lines(python: str, srun_arguments: Sequence[str], folder: Path, timeout_s: float) -> list[str]:
    """Lines of shell, behind one that sets `job`; `python` is quoted already, `folder` the submission's."""
    call = f"{python} -P -m runtime.slurm.preflight"
    srun = shlex.join(["srun", "--kill-on-bad-exit=0", *srun_arguments])
    limit = math.ceil(timeout_s) + _GRACE_S
    return [
        f'check={shlex.quote(str(folder))}/preflight-"$job"',
        'rm -rf "$check"; mkdir -p "$check"',
        f'timeout --kill-after=5 {limit} {srun} --output="$check/output.txt" {call}.probe "$check"',
        'scontrol show node --oneliner >"$check/nodes.txt"',
        'nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST"); state=$(squeue -h -j "$job" -o %T)',
        f'excluded=$({call}.judge "$check" "$nodes" "$state"); verdict=$?',
        f'if [ "$verdict" = {EXCLUDE} ]; then',
        f"  before=$({_EXCLUDED}); all=${{before:+$before,}}$excluded",
        '  for _ in $(seq 60); do scontrol requeuehold Incomplete "$job" && break; sleep 10; done',
        "  for _ in $(seq 60); do",
        f'    scontrol update JobId="$job" ExcNodeList="$all"; now=$({_EXCLUDED})',
        f'    if {_SAME}; then scontrol release "$job" && break; fi',
        "    sleep 1",
        "  done",
        "fi",
        f'if [ "$verdict" != {GO} ]; then exit 1; fi',
    ]
