"""`python -m sae_workflows._child PARENT MODULE ...`: run MODULE, and end when PARENT does.

A parent that is killed tells its children nothing; without this a daemon would go on starting runs
beside the one of the next UI.
"""

import os
import runpy
import signal
import sys
import threading
import time

SECONDS_BETWEEN_LOOKS = 1


def end_with(parent: int) -> None:
    """Interrupt this process as soon as ``parent`` is its parent no more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True, name="parent").start()


if __name__ == "__main__":
    given, module, *arguments = sys.argv[1:]
    end_with(int(given))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # before the module could handle it, as when it is being imported
        sys.exit(130)
