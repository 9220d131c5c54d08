"""Messages in the words of the library: its arguments in place of a command's options."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from specs.exit_codes import InputError

_ARGUMENTS = {
    r"--column '(\w+)=(.+?)'": r"columns={'\1': '\2'}",
    r"--column (\w+)=(\S+)": r"columns={'\1': '\2'}",
    r"--bytes-per-token (\S+)": r"bytes_per_token=\1",
    r"--loss-unit (\w+/\w+)": r"loss_unit='\1'",
    r"--loss-unit": r"loss_unit",
    r"--at": r"at",
}
"""Options of `isoplan fit` in messages, and the arguments of `fit` that they are."""


@contextmanager
def in_arguments() -> Iterator[None]:
    """What is refused within names arguments of `fit` in place of options."""
    try:
        yield
    except InputError as error:
        message = str(error)
        for option, argument in _ARGUMENTS.items():
            message = re.sub(option, argument, message)
        raise InputError(message) from None
