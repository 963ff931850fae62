"""Which signals end a wait.

The kernel sends INTERRUPT for every signal that a waiting process gets. A read that ends with EINTR for SIGCHLD or a
profiler's timer breaks programs that know no EINTR on files, so only the signals of people and service managers do.
"""

import signal
from pathlib import Path

_STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_MASKS = ("SigPnd", "ShdPnd", "SigBlk")


def wants_to_stop(pid: int) -> bool:
    """Whether a process has a signal pending that asks it to stop."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False  # of another pid namespace, or gone
    masks = {name: int(mask, 16) for name, _, mask in (line.partition(":\t") for line in lines) if name in _MASKS}
    pending = (masks.get("SigPnd", 0) | masks.get("ShdPnd", 0)) & ~masks.get("SigBlk", 0)
    return any(pending & (1 << (number - 1)) for number in _STOP_SIGNALS)
