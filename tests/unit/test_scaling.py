"""How many handlers: by load, one at a time."""

from forebay.fuse.scaling import Scaling


class Machine:
    """Handlers with a load each, looked at twice a second."""

    def __init__(self, scaling: Scaling) -> None:
        self.scaling = scaling
        self.used: dict[int, float] = {100: 5.0}
        self.now_s = 1000.0

    def look(self, *loads: float, times: int = 1) -> list[int]:
        found = []
        for _ in range(times):
            self.now_s += 0.5
            self.used = {100 + n: self.used.get(100 + n, 0.0) + load / 2 for n, load in enumerate(loads)}
            found.append(self.scaling.observe(self.used, self.now_s))
        return found


def test_grows_under_load_up_to_the_bound() -> None:
    machine = Machine(Scaling(1, 3))
    assert machine.look(0.9, times=3) == [0, 1, 0]
    assert machine.scaling.wanted == 2
    assert machine.look(0.9, 0.9, times=6).count(1) == 1
    assert machine.scaling.wanted == 3
    assert machine.look(0.9, 0.9, 0.9, times=20) == [0] * 20


def test_one_idle_handler_is_room_enough() -> None:
    machine = Machine(Scaling(1, 4))
    machine.scaling.wanted = 2
    assert machine.look(1.0, 0.5, times=20) == [0] * 20


def test_shrinks_slowly_down_to_the_bound() -> None:
    machine = Machine(Scaling(1, 4))
    machine.scaling.wanted = 2
    changes = machine.look(0.1, 0.1, times=40)
    assert changes.count(-1) == 1
    assert changes.index(-1) >= 29, "a pause of seconds is no reason to go"
    assert machine.scaling.wanted == 1
    assert machine.look(0.0, times=100) == [0] * 100


def test_fixed_number() -> None:
    machine = Machine(Scaling(2, 2))
    assert machine.look(1.0, 1.0, times=10) + machine.look(0.0, 0.0, times=50) == [0] * 60


def test_handlers_being_replaced_are_no_news() -> None:
    machine = Machine(Scaling(2, 4))
    assert machine.look(1.0, times=10) == [0] * 10


def test_the_same_instant_twice() -> None:
    scaling = Scaling(1, 2)
    assert [scaling.observe({1: 1.0}, 5.0), scaling.observe({1: 2.0}, 5.0)] == [0, 0]
