"""How the processes of a job end: what their exit status says, and never after their parent."""

import os
import threading
import time

LOST_RANK = 75
"""Exit status of a process that stopped because another one had."""

SILENT_RANK = 76
"""Exit status of a process that waited in vain for another one."""

USERS_ERROR = 77
"""Exit status of a process that found something the user can fix, and wrote it down."""

AGENT_ID = "SAE_AGENT"
"""Environment variable with the number of the process that watches the job."""

SECONDS_BETWEEN_LOOKS = 0.5


def end_with_parent(parent: int) -> None:
    """From now on this process ends, at once, when process ``parent`` is its parent no more.

    A parent that is killed tells its children nothing; without this they would go on, and write,
    beside those that the next run starts.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
