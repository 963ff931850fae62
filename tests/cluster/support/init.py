"""The first process of a host: reaps what others leave, and ends the host when its standard input does.

The test run holds the other end of that pipe. However it ends, `kill -9` included, the kernel closes the pipe, this
process ends, and with the first process of a process namespace the kernel kills all others of it.
"""

import signal
import sys


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test run, which then ends us
    print("up", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
