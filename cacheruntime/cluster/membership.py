"""Who is in the cluster, as this worker sees it: each address of the directory is asked who it is, again and again.

There is no consensus: two workers may see the cluster differently for a while, which costs a fetch from the source and
nothing else. A worker that does not answer stays in the view, for its share would move otherwise with every pause; what
it does not serve is the next one's meanwhile (`routing.py`). Only the directory removes a member, or its own word that
it is draining.
"""

import json
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NewType

import trio

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.directory import Directory, Static
from forebay.cacheruntime.cluster.placement import Member, WorkerId
from forebay.cacheruntime.durable import write_durably
from forebay.cacheruntime.errors import ForebayError
from forebay.proto import peer_pb2 as pb

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
"""Each address is asked so often; in a cluster of more than a hundred workers, seldomer."""

_PER_MEMBER_S = 0.02
_CALL_S = 2.0

SERVING, DRAINING = "serving", "draining"

Address = NewType("Address", str)
"""HOST:PORT."""


def worker_id(cache_dir: Path) -> WorkerId:
    """This worker's id, made once: its share is its own for as long as its cache folder lasts."""
    path = cache_dir / "worker-id"
    with suppress(OSError, ValueError):
        return WorkerId(str(uuid.UUID(path.read_text().strip())))
    made = WorkerId(str(uuid.UUID(bytes=secrets.token_bytes(16), version=4)))
    write_durably(path, made + "\n")
    return made


@dataclass(frozen=True)
class Known:
    """One worker."""

    id: WorkerId
    address: Address
    data_port: int
    capacity_bytes: int
    state: str
    """SERVING or DRAINING."""
    version: str = ""

    @property
    def member(self) -> Member:
        return Member(self.id, max(self.capacity_bytes, 1))


@dataclass(frozen=True)
class View:
    """What was known at one moment. Immutable: threads take it as it is."""

    me: WorkerId | None
    """None: a client node."""
    workers: dict[WorkerId, Known]
    """Without me."""
    members: tuple[Member, ...]
    """That own something, me included."""


class Membership:
    """Keeps the view. `run` in the worker's event loop; `view` from any thread."""

    def __init__(
        self,
        directory: Directory,
        mine: Known | None,
        channels: Callable[[Address], Any],
        memory: Path,
        *,
        learn: bool = False,
    ) -> None:
        """
        Args:
            directory: of addresses.
            mine: this worker; None on a client node.
            channels: a gRPC stub for an address.
            memory: file in which ids are kept, so that who is away at our start keeps its share.
            learn: ask members for more members; for client nodes, which are told of one.
        """
        self._directory = directory
        self._mine = mine
        self._channels = channels
        self._memory = memory
        self._learn = learn
        self._by_address: dict[Address, Known] = self._remembered()
        self._addresses: set[Address] = set()
        self._told: set[Address] = set()
        self._heard: set[Address] = set()
        """What members have told in this round."""
        self._answered: set[Address] = set()
        self._trouble = ""
        """With the directory, as it was logged last."""
        self._doubles: set[Address] = set()
        """Of workers with this one's id, as they were logged."""
        self.changed = trio.Event()
        self.looked = trio.Event()
        """Set when all that are known were asked once."""
        self.on_seen: Callable[[WorkerId, bool, float], None] = lambda _worker, _alive, _began: None
        """Told of each answer, or that none came, and when it was asked, by `time.monotonic`."""
        self.view = View(mine.id if mine else None, {}, (mine.member,) if mine else ())
        if isinstance(directory, Static):
            self._addresses = {Address(text) for text in directory.addresses()}
            self._see()

    def set_mine(self, **changes: Any) -> None:
        """This worker's own address, data port or state is another now."""
        if self._mine is not None:
            self._mine = replace(self._mine, **changes)
            self._see()

    @property
    def mine(self) -> Known | None:
        return self._mine

    def addresses(self) -> list[Address]:
        """Of all workers, this one included."""
        own = [self._mine.address] if self._mine is not None else []
        return sorted({*own, *self._addresses, *self._told})

    def is_away(self, address: Address) -> bool:
        """Whether it has not answered the last time."""
        return address not in self._answered

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            await self.look()
            await trio.sleep(max(INTERVAL_S, _PER_MEMBER_S * len(self._addresses)))

    async def look(self) -> None:
        """Ask the directory, then each worker."""
        try:
            found = await trio.to_thread.run_sync(self._directory.addresses, abandon_on_cancel=True)
            self._addresses = {Address(text) for text in found}
            self._trouble = ""
        except ForebayError as error:
            if self._trouble != str(error):  # it is asked every few seconds
                self._trouble = str(error)
                log.warning("the directory of the cluster does not answer: %s", error)
        before, self._heard = self._told, set()
        asked: set[Address] = {self._mine.address} if self._mine is not None else set()
        await self._ask_all(self._addresses, asked)
        if not self._heard:  # none of them answers
            await self._ask_all(before, asked)
        # All that anybody named: members may know different ones, and the last to answer is not right before others.
        self._told = self._heard or before
        self._see()
        self.looked.set()

    async def _ask_all(self, addresses: set[Address], asked: set[Address]) -> None:
        """These, and whom they tell of: a client node is to read from all from the start."""
        while fresh := {*addresses, *self._heard} - asked:
            asked |= fresh
            async with trio.open_nursery() as nursery:
                for address in fresh:
                    nursery.start_soon(self._ask, address)

    async def _ask(self, address: Address) -> None:
        request = pb.IdentifyRequest(caller=self._mine.id if self._mine else "")
        began = time.monotonic()
        try:
            reply = await rpc.call(self._channels(address).Identify, request, _CALL_S)
        except ForebayError as error:
            if address in self._answered:
                log.info("worker at %s does not answer: %s", address, error)
            self._answered.discard(address)
            known = self._by_address.get(address)
            if known is not None:
                self.on_seen(known.id, False, began)
            return
        self._answered.add(address)
        known = Known(WorkerId(reply.id), address, reply.data_port, reply.capacity_bytes, reply.state, reply.version)
        if self._learn:
            self._heard |= {Address(text) for text in reply.members}
            self._told |= self._heard
        mine = self._mine
        if mine is not None and known.id == mine.id and known.data_port != mine.data_port:
            self._note_double(address)
        if known != self._by_address.get(address):
            self._by_address[address] = known
            self._remember()
        self.on_seen(known.id, True, began)
        self._see()

    def _note_double(self, address: Address) -> None:
        if address not in self._doubles:
            self._doubles.add(address)
            log.warning(
                "the worker at %s has the id of this one, as when a cache folder was copied: both take the same share"
                " for theirs; end one of them, remove worker-id from its cache folder, and start it again",
                address,
            )

    def _see(self) -> None:
        """Make the next view of what is known."""
        mine = self._mine
        workers: dict[WorkerId, Known] = {}
        for address in sorted({*self._addresses, *self._told}):
            known = self._by_address.get(address)
            if known is None or (mine is not None and known.id == mine.id):
                continue
            # One worker at two addresses (a name and a number): that which answers counts.
            if known.id not in workers or not self.is_away(address):
                workers[known.id] = known
        members = [known.member for known in workers.values() if known.state != DRAINING]
        if mine is not None and mine.state != DRAINING:
            members.append(mine.member)
        found = tuple(sorted(members, key=lambda member: member.id))
        before = self.view
        if {m.id for m in found} != {m.id for m in before.members}:
            log.info("the cluster has %d members: %s", len(found), ", ".join(member.id for member in found))
        if (workers, found) != (before.workers, before.members):
            self.view = View(before.me, workers, found)
            self.changed.set()
            self.changed = trio.Event()

    def _remembered(self) -> dict[Address, Known]:
        try:
            raw = json.loads(self._memory.read_text())
            return {Address(a): Known(WorkerId(i), Address(a), 0, int(c), SERVING) for a, (i, c) in raw.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _remember(self) -> None:
        kept = {address: (known.id, known.capacity_bytes) for address, known in self._by_address.items()}
        try:
            write_durably(self._memory, json.dumps(kept, indent=2) + "\n")
        except OSError as error:
            log.warning("%s cannot be written: %s", self._memory, error.strerror)
