"""What can go wrong, split by whose fault it is, and the errno that a reader sees for each.

Foreign exceptions (obstore, botocore, fsspec, LMDB, gRPC) are mapped to these at the border, with
``raise ... from``. A message names the thing and, where there is one, the cure. It never holds a credential.
"""

import errno
from typing import ClassVar


class ForebayError(Exception):
    """Base of all errors that Forebay raises on purpose."""

    ERRNO: ClassVar[int] = errno.EIO
    TRANSIENT: ClassVar[bool] = False


class UsageError(ForebayError):
    """The user asked for something that cannot be: a bad option, address, mount point or size."""

    ERRNO = errno.EINVAL


class SourceError(ForebayError):
    """The under-store did not do what was asked."""


class SourceNotFound(SourceError):
    """No such bucket, object or file."""

    ERRNO = errno.ENOENT


class SourceDenied(SourceError):
    """The under-store knows us not, or forbids it: wrong key, missing permission."""

    ERRNO = errno.EACCES


class SourceStale(SourceError):
    """The object is no longer the version that was listed (If-Match failed)."""

    ERRNO = errno.ESTALE


class SourceUnavailable(SourceError):
    """A passing fault: connection refused or broken, time-out, throttled, 5xx. Worth another try."""

    ERRNO = errno.EIO
    TRANSIENT = True


class SourceTimeout(SourceError):
    """Passing faults went on until the deadline of the request."""

    ERRNO = errno.ETIMEDOUT


class CacheError(ForebayError):
    """The node's own cache: a tier, the index, the catalogue."""


class TierUnusable(CacheError):
    """A tier folder cannot be used as configured."""


class CacheFormatError(CacheError):
    """Files on disk are not in a format this version reads."""


class WorkerUnavailable(CacheError):
    """The worker of this cache folder cannot be reached and could not be started."""

    TRANSIENT = True


class NotAttached(CacheError):
    """The worker does not know the dataset: it is a new one, and the client has to attach again."""

    TRANSIENT = True


class AccessDenied(ForebayError):
    """Another party of the cluster may not do this: its certificate or its token does not allow it."""

    ERRNO = errno.EACCES


class LimitReached(ForebayError):
    """A client uses all that one client may use at once; worth another try when something has ended."""

    TRANSIENT = True


class MountError(ForebayError):
    """A mount could not be made, found or ended."""


def by_name(name: str) -> type[ForebayError]:
    """The error class with that name, for errors that crossed a process border; ForebayError if unknown."""
    return _CLASSES.get(name, ForebayError)


def _all(cls: type[ForebayError]) -> dict[str, type[ForebayError]]:
    found = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        found |= _all(sub)
    return found


_CLASSES = _all(ForebayError)
