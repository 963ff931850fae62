"""Cache policies as pure objects: no clock, no I/O; the worker's storage and the simulator use the same ones."""

from typing import Any

from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.policies.base import Item, Policy
from forebay.cacheruntime.policies.epoch import Epoch
from forebay.cacheruntime.policies.lru import Lru
from forebay.cacheruntime.policies.next_use import NextUse
from forebay.cacheruntime.policies.sieve import Sieve

__all__ = ["POLICIES", "Epoch", "Item", "Lru", "NextUse", "Policy", "Sieve", "policy_named"]

POLICIES: dict[str, type[Policy[Any]]] = {"epoch": Epoch, "sieve": Sieve, "lru": Lru, "next-use": NextUse}


def policy_named(name: str) -> Policy[Any]:
    """A fresh policy that holds nothing.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return POLICIES[name]()
    except KeyError:
        raise UsageError(f"no cache policy is named {name!r}; allowed are {', '.join(POLICIES)}") from None
