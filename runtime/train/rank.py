"""Entry point of a launched rank: exit when the launcher dies, and train.

A launcher that is killed cannot signal its ranks. So a rank's standard input is a pipe whose other end only the
launcher holds; it never carries a byte, and it closes when the launcher ends for any reason (runtime/launch/local.py).
"""

import gc
import os
import threading

from specs.exit_codes import RESUME


def main() -> None:
    """Train the run folder named on the command line, for as long as the launcher is alive."""
    watch_launcher()
    gc.disable()  # imports leave no garbage, and to look for it is a seventh of their CPU time
    from runtime.train.loop import main as train  # after the watch: importing torch takes seconds
    from runtime.train.process import end_process

    gc.freeze()
    gc.enable()
    end_process(train())


def watch_launcher() -> None:
    """From now on, exit as soon as the launcher has ended."""
    threading.Thread(target=_exit_with_launcher, daemon=True).start()


def _exit_with_launcher() -> None:
    while os.read(0, 1):
        pass
    os._exit(RESUME)  # the next launcher resumes from the latest checkpoint


if __name__ == "__main__":
    main()
