"""Every Python of a job reads this first: it paces training steps, so that what befalls a run meets it at work on any
machine, and it crashes a rank where a test wants it to.

    PACE_S      seconds that each step takes longer
    CRASH       "RANK STEP FILE": this rank kills itself at this step, for as long as that file exists; in an array
                a rank is TASK.RANK
    SLOW        "RANK SECONDS": this rank's steps take so much longer still
    DEAF        where it is set, ranks hear no warning that their time is nearly up
"""

import os
import signal
import time
from functools import wraps
from pathlib import Path
from typing import Any

if "SLURM_PROCID" in os.environ and "PACE_S" in os.environ:
    from specs.optim import OptimSpec

    lr = OptimSpec.lr

    @wraps(lr)
    def paced(self: OptimSpec, step: int) -> float:
        """As it was, later: every rank asks for it once a step."""
        time.sleep(float(os.environ["PACE_S"]))
        slow_rank, longer_s = os.environ.get("SLOW", "-1 0").split()
        if os.environ["SLURM_PROCID"] == slow_rank:
            time.sleep(float(longer_s))
        rank, at, file = os.environ["CRASH"].split(" ", 2)
        here = [os.environ[name] for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID") if name in os.environ]
        if (".".join(here), str(step)) == (rank, at) and Path(file).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return lr(self, step)

    OptimSpec.lr = paced  # type: ignore[method-assign]

if "SLURM_PROCID" in os.environ and os.environ.get("DEAF"):
    handle = signal.signal

    @wraps(handle)
    def deaf(number: int, handler: Any) -> Any:
        """As it was, but for USR2, which is ignored whatever a program wants."""
        return handle(number, signal.SIG_IGN if number == signal.SIGUSR2 else handler)

    signal.signal = deaf
