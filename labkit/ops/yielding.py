"""Labs beside one that measures speed: they take of the processor only what it leaves.

Linux runs a thread of the class SCHED_IDLE where no other thread wants the core, and takes the core away again as soon
as one does. A lab that measures spends most of its time waiting for engines that start on one core; that is when others
get on, and while it measures on all cores they hardly do. (A GPU has no such class; there `--jobs` is refused.)
"""

from __future__ import annotations

import os
from contextlib import suppress

import psutil


def set_yielding(pid: int, yielding: bool) -> None:
    """Gives a process and all below it the class SCHED_IDLE, or takes it back; what they start later inherits it.

    Taking it back needs a privilege (CAP_SYS_NICE, or a limit of 20 on niceness); without it they go on yielding.
    """
    policy = os.SCHED_IDLE if yielding else os.SCHED_OTHER
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(OSError):  # it ended while we looked, or the privilege is missing
                for thread in os.listdir(f"/proc/{process.pid}/task"):
                    os.sched_setscheduler(int(thread), policy, os.sched_param(0))
