"""The tests' end of `chaos_proxy.py`: rules, and what came."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos_proxy import Rule
from tasks import Conversation

PROGRAM = Path(__file__).with_name("chaos_proxy.py")
_ANSWER_S = 30.0


@dataclass(frozen=True)
class Seen:
    """One exchange, as `chaos_proxy.row` tells it."""

    method: str
    path: str
    query: str
    start: int
    end: int
    """Of the range; 0 and -1: the whole object."""
    status: int
    sent: int
    faults: tuple[str, ...]


class Chaos:
    """A running proxy. Resources: `close` ends it."""

    def __init__(self, upstream: str, folder: Path, listen: str = "127.0.0.1:0", enter: Sequence[str] = ()) -> None:
        """
        Args:
            upstream: HOST:PORT.
            folder: of the test.
            listen: HOST:PORT.
            enter: see `Host.enter`.
        """
        self._proxy = Conversation(PROGRAM, listen, upstream, root=folder, timeout_s=_ANSWER_S, enter=enter)
        host, port = self._proxy.ask("address")
        self.address = f"{host}:{port}"

    def add(self, rule: Rule) -> int:
        """From now on; returns its number."""
        number: int = self._proxy.ask("add", asdict(rule))
        return number

    def remove(self, number: int) -> int:
        """How often that rule struck."""
        struck: int = self._proxy.ask("remove", number)
        return struck

    def clear(self) -> None:
        """No rule is left."""
        self._proxy.ask("clear")

    def mark(self) -> int:
        """How many exchanges there were up to now: for `seen`."""
        return len(self.seen())

    def seen(self, since: int = 0) -> list[Seen]:
        """Exchanges in the order in which they came, from that number on."""
        return [Seen(*rest, tuple(faults)) for *rest, faults in self._proxy.ask("exchanges", since)]

    def close(self) -> None:
        self._proxy.close()


def gets(seen: Iterable[Seen], under: str) -> list[Seen]:
    """GETs of objects below a path; of a bucket's listing there is none among them."""
    return [one for one in seen if one.method == "GET" and one.path.startswith(under) and "list-type" not in one.query]


def gets_per_block(
    seen: Iterable[Seen], block_bytes: int, sizes: dict[str, int] | None = None
) -> Counter[tuple[str, int]]:
    """How many GETs touched each (path, block); those that came to nothing count as well.

    Args:
        sizes: of objects in bytes, for GETs of the whole object; those of unknown size count for block 0.
    """
    found: Counter[tuple[str, int]] = Counter()
    for one in seen:
        end = one.end if one.end >= 0 else (sizes or {}).get(one.path, 1)
        for block in range(one.start // block_bytes, max(math.ceil(end / block_bytes), one.start // block_bytes + 1)):
            found[one.path, block] += 1
    return found
