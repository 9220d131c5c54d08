"""The first lines of a launched rank: it dies with its launcher, then it trains.

A launcher that is killed outright can tell nobody. So a rank's standard input is a pipe whose other end only the
launcher holds; it never carries a byte, and it ends when the launcher does, whatever ended it (see
runtime/launch/local.py)."""

import os
import threading

from specs.exit_codes import RESUME


def main() -> None:
    """Train the run folder named on the command line for as long as the launcher lives."""
    watch_launcher()
    from runtime.train.loop import main as train  # after the watch: importing torch takes seconds
    from runtime.train.process import end_process

    end_process(train())


def watch_launcher() -> None:
    """From now on, end this process as soon as the launcher is gone."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()


def _end_with_launcher() -> None:
    while os.read(0, 1):
        pass
    os._exit(RESUME)  # the next launcher resumes from the latest checkpoint


if __name__ == "__main__":
    main()
