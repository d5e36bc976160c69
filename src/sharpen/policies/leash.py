"""Run a command on a leash: ``python leash.py OWNER COMMAND ...``. When the process OWNER is gone, or the command ends, the whole process group is
killed.

For servers that start processes of their own: killed alone, such a server leaves them behind with the memory. Started as the leader of its own
session (``start_new_session``), so that killing the owner's group does not reach it. Run as a file, without this package, to weigh nothing.
"""

import os
import signal
import subprocess
import sys

SECONDS_BETWEEN_LOOKS = 0.2


def main() -> None:
    owner = int(sys.argv[1])
    child = subprocess.Popen(sys.argv[2:])
    while os.getppid() == owner:
        try:
            child.wait(SECONDS_BETWEEN_LOOKS)
            break
        except subprocess.TimeoutExpired:
            pass
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
