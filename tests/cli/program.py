"""The program as a process of its own, with the runtime of a few lines behind it.

With HYPRSTREAM_TEST_TERMINAL set, its stdin becomes the terminal that Ctrl-C comes from.
"""

import fcntl
import os
import sys
import termios

from hyprstream.cli.main import main
from tests.cli.fakes import FakeRuntime

if __name__ == "__main__":
    if os.environ.get("HYPRSTREAM_TEST_TERMINAL"):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.modules["hyprstream.runtime"] = FakeRuntime()
    main()
