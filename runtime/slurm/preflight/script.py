"""What a batch script does before its ranks start: the preflight's tasks, the judge, and what follows from its verdict.

The shell itself calls squeue and scontrol, since a container may not have them. A node is excluded by requeueing the
job held, with another list of nodes that it may not have; it is released only once SLURM shows that list.
"""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from runtime.slurm.preflight.judge import EXCLUDE, STOP

_GRACE_S = 15
"""For srun to start and end its tasks, beside their own time."""
_EXCLUDED = (
    r"""scontrol show job -o "$job" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p' | sed 's/^(null)$//'"""
)
_RETRY = "for _ in $(seq 60); do"
"""Ten minutes with the pauses of most loops, which is longer than any restart of a controller that we have seen."""
_SAME = '[ "$(scontrol show hostnames "$now" | sort -u)" = "$(scontrol show hostnames "$all" | sort -u)" ]'


def lines(python: str, srun_arguments: Sequence[str], folder: Path, timeout_s: float) -> list[str]:
    """Lines of shell, behind one that sets `job`; `python` is quoted already, `folder` the submission's.

    A judge that itself fails stops nobody: the ranks start.
    """
    call = f"{python} -P -m runtime.slurm.preflight"
    srun = shlex.join(["srun", "--kill-on-bad-exit=0", *srun_arguments])
    limit = math.ceil(timeout_s) + _GRACE_S
    return [
        f'check={shlex.quote(str(folder))}/preflight-"$job"',
        'rm -rf "$check"; mkdir -p "$check"',
        f'timeout --kill-after=5 {limit} {srun} --output="$check/output.txt" {call}.probe "$check"',
        f'{_RETRY} scontrol show node --oneliner >"$check/nodes.txt" && break; sleep 10; done',
        f'{_RETRY} state=$(squeue -h -j "$job" -o %T) && break; sleep 10; done',
        'nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        f'excluded=$({call}.judge "$check" "$nodes" "$state"); verdict=$?',
        f'if [ "$verdict" = {EXCLUDE} ]; then',
        f"  before=$({_EXCLUDED}); all=${{before:+$before,}}$excluded",
        f'  {_RETRY} scontrol requeuehold Incomplete "$job" && break; sleep 10; done',
        f"  {_RETRY}",
        f'    scontrol update JobId="$job" ExcNodeList="$all"; now=$({_EXCLUDED})',
        f'    if {_SAME}; then scontrol release "$job" && break; fi',
        "    sleep 1",
        "  done",
        "fi",
        f"if [[ $verdict = [{EXCLUDE}{STOP}] ]]; then exit 1; fi",
    ]
