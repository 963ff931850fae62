"""What one dataset may take of the tiers, and by which policy it gives room."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from forebay.cacheruntime.index import PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.policies import Policy, policy_named
from forebay.cacheruntime.touch import slot_of

Item = ContentId | PackNumber
"""What can be dropped: a file of its own or a pack."""


@dataclass
class Space:
    """One dataset's part of the cache. For the event loop."""

    dataset: DatasetId
    name: str = "epoch"
    """Of the policy."""
    policy: Policy[Item] = field(default_factory=lambda: policy_named("epoch"))
    is_loaded: bool = False
    """The policy knows what is cached."""
    items: dict[int, Item] = field(default_factory=dict)
    """What the policy knows, by touch slot; of two that share one, the later."""
    to_load: Iterator[tuple[PackNumber, ContentId]] | None = None
    """What the policy has not been told of yet."""
    walks: dict[tuple[TierNumber | None, int | None], Iterator[Item]] = field(default_factory=dict)
    """Searches for victims that were broken off, by tier and share."""
    touched: set[Item] = field(default_factory=set)
    """Read since they were looked at for promotion."""
    quota_bytes: int = 0
    """0: no bound."""
    quotas: dict[int, int] = field(default_factory=dict)
    """Share -> bytes."""
    shares: dict[bytes, int] = field(default_factory=dict)
    """Path -> share."""
    replicas: int = 0
    """Copies that a cluster is to have; 0: as many as it is set to."""
    replicas_by_path: dict[bytes, int] = field(default_factory=dict)
    pins: list[bytes] = field(default_factory=list)
    """By command."""
    manifest_pins: list[bytes] = field(default_factory=list)
    used: dict[int, int] = field(default_factory=dict)
    """Share -> bytes that are cached or reserved."""

    def share_of(self, path: bytes) -> int:
        """The share that a file belongs to: of the longest path that it is below."""
        found = max((known for known in self.shares if is_below(path, known)), key=len, default=None)
        return self.shares[found] if found is not None else 0

    def is_pinned(self, path: bytes) -> bool:
        return any(is_below(path, pinned) for pinned in (*self.pins, *self.manifest_pins))

    def room_bytes(self, share: int) -> int | None:
        """What the dataset, and this share of it, may still take; None when there is no bound."""
        rooms = []
        if self.quota_bytes:
            rooms.append(self.quota_bytes - sum(self.used.values()))
        counts = self.counts(share)
        if quota := self.quotas.get(counts):
            rooms.append(quota - sum(used for one, used in self.used.items() if self.counts(one) == counts))
        return max(0, min(rooms)) if rooms else None

    def counts(self, share: int) -> int:
        """The share by whose quota another one is bounded: itself, or that of the longest path above that has one."""
        if share in self.quotas or not self.quotas:
            return share
        path = self._path_of(share)
        above = [known for known, number in self.shares.items() if number in self.quotas and is_below(path, known)]
        return self.shares[max(above, key=len)] if above else share

    def replicas_of(self, share: int) -> int:
        """Copies that a cluster is to have of a share's files; 0: as many as it is set to."""
        if not self.replicas_by_path:
            return self.replicas
        path = self._path_of(share)
        above = [known for known in self.replicas_by_path if is_below(path, known)]
        return self.replicas_by_path[max(above, key=len)] if above else self.replicas

    def _path_of(self, share: int) -> bytes:
        return next((path for path, number in self.shares.items() if number == share), b"")

    def take(self, share: int, size: int) -> None:
        self.used[share] = self.used.get(share, 0) + size

    def give_back(self, share: int, size: int) -> None:
        self.used[share] = self.used.get(share, 0) - size

    def use_policy(self, name: str) -> None:
        """Go on with another policy; it has to be told what is cached.

        Raises:
            UsageError: there is none of that name.
        """
        name = name or "epoch"
        if name != self.name:
            self.policy = policy_named(name)
            self.name, self.is_loaded = name, False
            self.walks.clear()


def slot_of_item(item: Item) -> int:
    """Its touch slot."""
    return slot_of(item, PackNumber(0)) if isinstance(item, bytes) else slot_of(ContentId(b""), item)


def is_below(path: bytes, parent: bytes) -> bool:
    """Whether a path is another one, or below it."""
    return not parent or path == parent or path.startswith(parent + b"/")
