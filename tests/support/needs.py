"""What a test needs that not every machine has: slurm, mount (of a file system), gpu, shared (public data).

Where it is absent the test is skipped, and the reason says which of them it needs. ISOPLAN_REQUIRE names those that
this machine is meant to have, as in `ISOPLAN_REQUIRE=slurm,mount`: their absence is a failure then.
"""

import os
from pathlib import Path
from typing import NoReturn

import pytest

NEEDS = ("slurm", "mount", "gpu", "shared")


def required() -> set[str]:
    """What this machine is meant to have."""
    named = {need.strip() for need in os.environ.get("ISOPLAN_REQUIRE", "").split(",")} - {""}
    assert named <= set(NEEDS), (
        f"ISOPLAN_REQUIRE may name {', '.join(NEEDS)}, not {', '.join(named - set(NEEDS))}"
    )
    return named


def absent(need: str, reason: str) -> NoReturn:
    """Skip the test that needs this; fail it where it is required."""
    message = f"needs {need}: {reason}"
    if need in required():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def shared(path: Path) -> Path:
    """The path of public data that lies beside the repository on some machines."""
    if not path.exists():
        absent("shared", f"{path.name} is not beside the repository")
    return path
