"""The proxy before the store: faults by rule, changed while it runs, and a count of every request. A program.

``python chaos_proxy.py LISTEN UPSTREAM`` (each HOST:PORT) ends with its standard input, and answers each line of JSON:

* ``["add", RULE]``: from now on, exchanges that match have that fault; the rule's number. See `Rule` for its fields.
* ``["remove", NUMBER]``: how often that rule struck.
* ``["clear"]``: no rule is left.
* ``["exchanges", SINCE]``: what came and became of it, from that number on; see `row`.
* ``["address"]``: where it listens; port 0 in LISTEN is any.

`Chaos` in `store.py` is the other end. Standard library only.
"""

import asyncio
import json
import random
import re
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "mount/support"))

from http_proxy import Exchange, Fault, HttpProxy


@dataclass
class Rule:
    """A fault, and what it befalls."""

    latency_s: float = 0.0
    instead: str = ""
    body: str = ""
    amount: int = -1
    rate: float = 0.0
    """See `http_proxy.Fault` for these."""
    method: str = "GET"
    path: str = "*"
    """A glob for path and query, `/BUCKET/KEY`; `*` goes over `/`."""
    probability: float = 1.0
    seed: int = 0
    count: int | None = None
    """How often at most; None: always."""

    def __post_init__(self) -> None:
        if self.before_passing_on == bool(self.body or self.rate):
            raise ValueError(f"{self}: give latency_s and instead, or body and rate")

    @property
    def before_passing_on(self) -> bool:
        return bool(self.latency_s or self.instead)


@dataclass
class _Active:
    rule: Rule
    rng: random.Random = field(init=False)
    struck: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.rule.seed)

    def strikes(self, exchange: Exchange) -> bool:
        rule = self.rule
        if exchange.method != rule.method or self.struck == rule.count:
            return False
        target = exchange.path + (f"?{exchange.query}" if exchange.query else "")
        if not fnmatchcase(target, rule.path) or self.rng.random() >= rule.probability:
            return False
        self.struck += 1
        return True


class Rules:
    """Decides for `HttpProxy`. Of two rules that strike the same part, the later one holds."""

    def __init__(self) -> None:
        self._numbers = 0
        self.active: dict[int, _Active] = {}

    def add(self, rule: Rule) -> int:
        self._numbers += 1
        self.active[self._numbers] = _Active(rule)
        return self._numbers

    def decide(self, exchange: Exchange, size: int | None) -> Fault:
        fault = Fault()
        for active in self.active.values():
            rule = active.rule
            if rule.before_passing_on != (size is None) or not active.strikes(exchange):
                continue
            fault.latency_s += rule.latency_s
            fault.instead = rule.instead or fault.instead
            fault.body, fault.amount = (rule.body, rule.amount) if rule.body else (fault.body, fault.amount)
            fault.rate = rule.rate or fault.rate
            fault.at = active.rng.random()
        return fault


def row(exchange: Exchange) -> list[object]:
    """method, path, query, start and end of the range (0 and -1: all of it), status, bytes sent, faults."""
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", exchange.header("range"))
    start, end = (int(span[1]), int(span[2]) + 1 if span[2] else -1) if span else (0, -1)
    return [
        exchange.method, exchange.path, exchange.query, start, end, exchange.status, exchange.sent, exchange.faults
    ]  # fmt: skip


async def _main(listen: str, upstream: str) -> None:
    rules = Rules()
    proxy = HttpProxy(upstream, rules.decide)
    host, _, port = listen.rpartition(":")
    server = await asyncio.start_server(proxy.serve, host, int(port), backlog=1024)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        word, *args = json.loads(line)
        answer: object = None
        if word == "add":
            answer = rules.add(Rule(**args[0]))
        elif word == "remove":
            answer = rules.active.pop(args[0]).struck
        elif word == "clear":
            rules.active.clear()
        elif word == "exchanges":
            answer = [row(exchange) for exchange in proxy.exchanges[args[0] :]]
        elif word == "address":
            answer = server.sockets[0].getsockname()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
