"""`python -m runtime.tracking.process WORKSPACE RUN... --tracker JSON --study NAME`: sync in a process of its own.

It has the lowest priority and no part in the runs. The last line of its standard error says why it failed, if it did.
"""

import argparse
import os
import sys
from pathlib import Path

from runtime.run_folder.folder import RunFolder
from runtime.tracking.delivery import TrackerError
from runtime.tracking.sync import sync
from specs.exit_codes import BAD_INPUT, OK, RESUME, InputError
from specs.tracker import Tracker

_NICE = 19
"""The lowest priority (setpriority(2)): the ranks may need every core."""


def main() -> int:
    """Sync the runs that the command line names; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m runtime.tracking.process", description=main.__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="their folders")
    parser.add_argument("--tracker", required=True, help="a Tracker, as JSON")
    parser.add_argument("--study", required=True, help="the study's name, or empty")
    arguments = parser.parse_args()
    os.nice(_NICE)
    tracker = Tracker.model_validate_json(arguments.tracker)
    try:
        for run in arguments.runs:
            sync(RunFolder(run), tracker, arguments.study, arguments.workspace)
    except (TrackerError, InputError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT if isinstance(error, InputError) else RESUME
    return OK


if __name__ == "__main__":
    sys.exit(main())
