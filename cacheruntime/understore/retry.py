"""Trying again: when, how long, and never with a byte given out twice.

Exponential backoff with full jitter (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015):
of the schemes compared there it needs the fewest calls when many clients come back at once, which is what the
workers of one training job do after a store has throttled them.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import ForebayError, SourceTimeout
from forebay.cacheruntime.understore.base import Entry, ReadsMany, UnderStore, WholeFiles

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

Clock = Callable[[], float]
Sleep = Callable[[float], None]


class Patience:
    """The tries of one request: counts them, waits between them, and gives up at the deadline."""

    def __init__(self, config: RetryConfig, deadline_s: float, clock: Clock, sleep: Sleep, rng: random.Random) -> None:
        self._config = config
        self._allowed_s = deadline_s
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._began = clock()
        self._tries = 0

    def wait_or_raise(self, error: ForebayError) -> None:
        """After a failed try: return when it is time for the next one.

        Raises:
            ForebayError: `error` itself when it is permanent.
            SourceTimeout: the next try would begin after the deadline; the message carries that of `error`.
        """
        if not error.TRANSIENT:
            raise error
        self._tries += 1
        # Capped exponent: 2.0**1024 overflows, and a long deadline with a short delay gets there.
        ceiling = min(self._config.max_delay_s, self._config.first_delay_s * 2.0 ** min(self._tries - 1, 60))
        delay = self._rng.uniform(0, ceiling)
        if self._clock() - self._began + delay >= self._allowed_s:
            plural = "try" if self._tries == 1 else "tries"
            raise SourceTimeout(
                f"gave up after {self._tries} {plural} in {self._clock() - self._began:.1f} s: {error}"
            ) from error
        self._sleep(delay)


class Retrier:
    """Runs single calls under a `RetryConfig`; under-stores use it page by page while they list."""

    def __init__(
        self,
        config: RetryConfig,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()

    def patience(self, deadline_s: float | None = None) -> Patience:
        """Begin one request; `deadline_s` (seconds from now) defaults to the config's."""
        allowed = self.config.deadline_s if deadline_s is None else deadline_s
        return Patience(self.config, allowed, self._clock, self._sleep, self._rng)

    def retry_call(self, attempt: Callable[[], T], deadline_s: float | None = None) -> T:
        """Call `attempt` until it returns.

        Args:
            attempt: safe to repeat; raises a `ForebayError` whose TRANSIENT says if another try makes sense.
            deadline_s: seconds from now for all tries; None takes the config's.

        Raises:
            SourceTimeout: passing faults went on until the deadline.
        """
        patience = self.patience(deadline_s)
        while True:
            try:
                return attempt()
            except ForebayError as error:
                patience.wait_or_raise(error)


class RetryingStore:
    """An under-store that tries again where the one inside tries once.

    *Resources*: closing it closes the store inside.
    """

    def __init__(
        self,
        store: UnderStore,
        config: RetryConfig,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._retrier = Retrier(config, clock, sleep, rng)

    @property
    def url(self) -> str:
        """That of the store inside: retries do not change content."""
        return self._store.url

    @property
    def pins_version(self) -> bool:
        """As the store inside."""
        return self._store.pins_version

    @property
    def lists_in_key_order(self) -> bool:
        """As the store inside."""
        return self._store.lists_in_key_order

    def probe(self) -> None:
        """As the store inside, within `RetryConfig.probe_deadline_s`: a person waits."""
        self._retrier.retry_call(self._store.probe, self._retrier.config.probe_deadline_s)

    def list_tree(self) -> Iterator[list[Entry]]:
        """As the store inside, begun anew only while nothing was given out.

        A listing cannot be resumed from outside, so stores retry each page themselves (`Retrier.retry_call`)
        and what comes out of them later is final.
        """
        patience = self._retrier.patience()
        while True:
            given_out = False
            try:
                for page in self._store.list_tree():
                    given_out = True
                    yield page
                return
            except ForebayError as error:
                if given_out:
                    raise
                patience.wait_or_raise(error)

    def list_directory(self, path: str) -> list[Entry]:
        """As the store inside."""
        return self._retrier.retry_call(lambda: self._store.list_directory(path))

    def stat(self, path: str) -> Entry:
        """As the store inside."""
        return self._retrier.retry_call(lambda: self._store.stat(path))

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """As the store inside; after a fault it goes on behind the last byte given out.

        The deadline runs from the first try, and anew from a fault before which there was progress: a long
        transfer over a bad link is no dead one.
        """
        patience = self._retrier.patience()
        done = 0
        while True:
            before = done
            try:
                # Also when nothing is left to fetch: stores without If-Match compare versions at the end.
                for piece in self._store.read_range(path, start + done, length - done, version):
                    done += memoryview(piece).nbytes
                    yield piece
                return
            except ForebayError as error:
                if done > before:
                    patience = self._retrier.patience()
                patience.wait_or_raise(error)

    def whole_files(self) -> WholeFiles | None:
        """As the store inside: what fails there is tried again by `read_range`."""
        return self._store.whole_files() if isinstance(self._store, ReadsMany) else None

    def close(self) -> None:
        """As the store inside."""
        self._store.close()
