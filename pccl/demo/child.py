"""What every child process of the demo does first: it makes sure to end when its parent does.

The parent holds the other end of the child's standard input and writes only the word to go on.
When that pipe closes, by whatever end the parent found, the child has no reason to live; so not
even a `kill -9` of the demo leaves processes behind.

`python -m pccl.demo.child ARGUMENT...` runs the `pccl` command line like that (the coordinator).
"""

import os
import sys
import threading

from pccl.demo.events import GO

ORPHANED_EXIT_CODE = 3


def end_with_parent() -> threading.Event:
    """Watches standard input from a thread; returns the event that is set at the parent's word."""
    gone_on = threading.Event()

    def watch() -> None:
        for line in sys.stdin:
            if line.strip() == GO:
                gone_on.set()
        os._exit(ORPHANED_EXIT_CODE)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    return gone_on


if __name__ == "__main__":
    from pccl.cli import main

    end_with_parent()
    sys.argv = ["pccl", *sys.argv[1:]]
    sys.exit(main())
