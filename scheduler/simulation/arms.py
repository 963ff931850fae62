"""The policies that are compared, each the one before it with one thing more where it says so."""

from dataclasses import dataclass, replace

from forebay.scheduler.model import QueuePolicy
from forebay.scheduler.settings import Settings, Weights


@dataclass(frozen=True)
class Arm:
    """A policy."""

    name: str
    title: str
    settings: Settings
    policy: QueuePolicy = "best-effort"
    """Of all queues."""


_BLIND = Settings(weights=Weights(cold=0.0, domain=0.0), warm_gate=False, prefetch=False, backfill=False)
_LABEL = replace(_BLIND, weights=Weights(domain=0.0), node_choice="label")
_TOPOLOGY = replace(_BLIND, weights=Weights(cold=0.0))
_JOINT = replace(_TOPOLOGY, weights=Weights())
_GATE = replace(_JOINT, warm_gate=True)
_PREFETCH = replace(_GATE, prefetch=True)
_BACKFILL = replace(_PREFETCH, backfill=True)

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("fifo", "first come, packed, blind to data and racks", _BLIND),
        Arm("label", "with a label on nodes that have any of the data (Fluid)", _LABEL),
        Arm("topology", "gangs in one rack (Kueue), blind to data", _TOPOLOGY),
        Arm("joint", "and cold bytes in the same score", _JOINT),
        Arm("gate", "and jobs wait for warm data without holding quota", _GATE),
        Arm("prefetch", "and data is loaded by queue position", _PREFETCH),
        Arm("ordered", "and nobody passes those before him in his queue", _PREFETCH, "fifo"),
        Arm("backfill", "but around the first of each queue, who has a reservation (EASY)", _BACKFILL, "fifo"),
    )
}


def arm_named(name: str) -> Arm:
    """Raises: ValueError: there is none of that name."""
    if name not in ARMS:
        raise ValueError(f"no arm is named {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]
