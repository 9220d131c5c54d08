"""A process that works on a corpus: `python -m runtime.data.build.worker FILE_DESCRIPTOR PARENT`, started by `workers`.

It takes (function, task) from the connection, and answers with ("bytes", number) now and then, and with ("done",
result) or ("error", exception). It ends when its parent does, even one that is killed in the middle of a task.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

_LOOK_S = 0.1


def main(connection: "Connection[Any, Any]", parent: int) -> None:
    """Work until there are no more tasks."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            function, task = connection.recv()
            try:
                answer = ("done", function(task, lambda done: connection.send(("bytes", done))))
            except Exception as error:
                answer = ("error", error)
            connection.send(answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
