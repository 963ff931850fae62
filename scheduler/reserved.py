"""What is left of reservations beside the jobs that use them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from forebay.scheduler.jobs import GpuRequest, PlacedPods
from forebay.scheduler.live import Live
from forebay.scheduler.model import Reservation
from forebay.scheduler.nodes import Demand, NodeTable

NOTHING: tuple[Demand, tuple[int, ...]] = (Demand((), None, ()), ())
"""What is left of a reservation that is used up."""


@dataclass(eq=False)
class Held:
    """A reservation at work: what is left of it is taken in the table."""

    reservation: Reservation
    row: int
    demand: Demand
    cards: tuple[int, ...]

    def leave(self, table: NodeTable | None, left: tuple[Demand, tuple[int, ...]]) -> None:
        """So much is left of it from now on. Args: table: that does not know yet; None: it does."""
        if table is not None:
            table.give(self.row, self.demand, self.cards)
            table.take(self.row, *left)
        self.demand, self.cards = left


def remainder(reservation: Reservation, users: Sequence[Live]) -> tuple[Demand, tuple[int, ...]]:
    """What is left of a reservation beside the jobs that use it."""
    if reservation.once and users:
        return NOTHING
    return left_over(reservation, [used for live in users for used in live.pods()])


def left_over(reservation: Reservation, used: Iterable[tuple[PlacedPods, Demand]]) -> tuple[Demand, tuple[int, ...]]:
    """What is left of a reservation beside these pods."""
    amounts, cards = dict(reservation.amounts), set(reservation.cards)
    for placed, demand in used:
        if placed.node == reservation.node:
            for name, amount in demand.amounts:
                if name in amounts:
                    amounts[name] = max(0, amounts[name] - amount * placed.count)
            cards -= {card for taken in placed.cards for card in taken}
    left = tuple(sorted(cards))
    gpus = GpuRequest(cards=len(left)) if left else None
    return Demand(tuple(sorted((name, amount) for name, amount in amounts.items() if amount)), gpus, ()), left
