"""The console scripts `plan`, `run`, `audit` and `isoplan`.

Of our other packages nothing is imported before it is known that no file of the user's is imported in their place.
"""

import atexit
import sys

from isoplan.shadowing import shadowing


def main() -> None:
    """Console script `isoplan`."""
    _start("isoplan")


def plan_main() -> None:
    """Console script `plan`."""
    _start("plan")


def run_main() -> None:
    """Console script `run`."""
    _start("run")


def audit_main() -> None:
    """Console script `audit`."""
    _start("audit")


def _start(script: str) -> None:
    """Carry out what was typed; the shell's completion goes by the script's name."""
    hidden_by = shadowing()
    if hidden_by is not None:
        sys.stderr.write(f"{hidden_by}\n")
        raise SystemExit(2)  # specs.exit_codes.BAD_INPUT, which may be hidden
    from runtime.launch.stop import INTERRUPTED, STOP, ignore_stop_signals
    from specs.exit_codes import RESUME

    with STOP.listen():
        try:
            from isoplan.verbs import app_of

            app_of(script)(prog_name=script)
        except BaseException as error:
            if STOP.received:
                atexit.register(ignore_stop_signals)  # the interpreter's own end takes a moment
            if isinstance(error, SystemExit) or not STOP.received:
                raise
            sys.stderr.write(f"{INTERRUPTED}\n")
            raise SystemExit(RESUME) from None
