"""A host that is the object store: moto behind the chaos proxy."""

from pathlib import Path

from chaos import Chaos
from host import Host
from named_files import FileSet, size_of
from tasks import Conversation

_SERVER = Path(__file__).with_name("store_server.py")
_INSIDE = "127.0.0.1:5000"
_PORT = 9000
_FILL_S = 120.0
BUCKET, PREFIX = "bucket", "root/"


class Store:
    """An S3 service with one bucket. Resources: it ends with its host."""

    def __init__(self, host: Host) -> None:
        """
        Args:
            host: of its own.
        """
        self.host = host
        self._server = Conversation(
            _SERVER, _INSIDE, root=host.folder, timeout_s=_FILL_S, enter=host.enter(), packages=True
        )
        self.chaos = Chaos(_INSIDE, host.folder, f"{host.address}:{_PORT}", host.enter())
        self.url = f"http://{host.name}:{_PORT}"
        self.source = f"s3://{BUCKET}/{PREFIX.rstrip('/')}"
        self.sizes: dict[str, int] = {}
        """Path of an object, as GETs name it -> bytes."""

    @property
    def args(self) -> tuple[str, ...]:
        """Of `forebay mount` and its like."""
        pairs = (f"endpoint={self.url}", "region=us-east-1", "access_key_id=key", "secret_access_key=secret")
        return tuple(word for pair in pairs for word in ("--option", pair))

    def fill(self, files: FileSet) -> None:
        """Put these files there."""
        self._server.ask("fill", BUCKET, PREFIX, [files.small, files.large, files.seed])
        self.sizes |= {f"{self.path}{name}": size_of(name) for name in files.names}

    @property
    def path(self) -> str:
        """What the paths of all objects begin with, in GETs."""
        return f"/{BUCKET}/{PREFIX}"

    def close(self) -> None:
        self.chaos.close()
        self._server.close()
