"""Which event loop the library's own threads and programs run on: uvloop where it is installed.

Only shells that own their loop use this; code under test runs on whatever loop it is given.
"""

import asyncio
from collections.abc import Callable

make_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    import uvloop
except ImportError:  # a platform without wheels; asyncio's own loop does the same, more slowly
    make_loop = asyncio.new_event_loop
else:
    make_loop = uvloop.new_event_loop


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Returns a fresh loop, for `asyncio.Runner(loop_factory=new_event_loop)`."""
    return make_loop()
