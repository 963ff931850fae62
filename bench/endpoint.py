"""Sources to read from: an S3 service that takes uploads. moto is started here, on loopback.

moto answers the whole S3 protocol but makes each reply in Python, so it is slower than what it feeds: good for the
demo. What the benchmark reads from is in `sendfile_endpoint`.
"""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.session
import obstore
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import S3Config

_READY_S = 20.0
_UPLOADS = 4  # at once; more only queue in moto's one interpreter

KEYS = {"AWS_ACCESS_KEY_ID": "forebay-bench", "AWS_SECRET_ACCESS_KEY": "forebay-bench"}

_MOTO_ENVIRON = {
    # moto reads a whole object to answer a range of it. With freed memory kept by the process, instead of faulted in
    # anew for each reply, that takes 70 ms for 256 MiB, not 200 ms. (glibc, mallopt(3).)
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}

Done = Callable[[int], None]
"""Told the size, in bytes, of each file that has been published."""


@dataclass(frozen=True)
class Endpoint:
    """An S3 service that takes uploads.

    Datasets are prefixes of one bucket.
    """

    name: str
    url: str
    bucket: str
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Credentials for those who read from it, as environment variables; empty: those that are set already."""
    region: str = "us-east-1"

    def source(self, dataset: str) -> str:
        """What `forebay mount` takes."""
        return f"s3://{self.bucket}/{dataset}"

    def options(self) -> list[str]:
        """What `forebay mount --option` takes."""
        return [f"endpoint={self.url}", f"region={self.region}"]

    def store(self, dataset: str) -> S3Store:
        """The bare client: obstore at a dataset's root."""
        return self.client(self.bucket, dataset)

    def publish(self, dataset: str, files: Mapping[str, Path], done: Done = lambda _: None) -> None:
        """Upload local files under their keys."""
        store = self.store(dataset)

        def put(key: str, path: Path) -> int:
            data = path.read_bytes()
            obstore.put(store, key, data, use_multipart=False)
            return len(data)

        with ThreadPoolExecutor(_UPLOADS) as pool:
            try:
                for size in pool.map(put, files.keys(), files.values()):
                    done(size)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def withdraw(self, dataset: str, keys: list[str]) -> None:
        """Remove what was published; of use with an endpoint that outlives us."""
        obstore.delete(self.store(dataset), keys)

    def client(self, bucket: str, prefix: str) -> S3Store:
        """obstore at a prefix of a bucket."""
        config: S3Config = {"endpoint": self.url, "region": self.region, "virtual_hosted_style_request": False}
        if self.environ:
            config["access_key_id"] = self.environ["AWS_ACCESS_KEY_ID"]
            config["secret_access_key"] = self.environ["AWS_SECRET_ACCESS_KEY"]
        return S3Store(bucket, prefix=prefix or None, config=config, client_options={"allow_http": True})


@contextmanager
def moto_endpoint(folder: Path, bucket: str = "forebay-bench") -> Iterator[Endpoint]:
    """A moto server with one empty bucket, ended on leaving.

    Args:
        folder: for its log.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = Path(sys.executable).with_name("moto_server")
    command = [str(server), "-H", "127.0.0.1", "-p", str(port)]
    environ = {**_MOTO_ENVIRON, "TMPDIR": str(folder)}  # large objects are temporary files
    with serving(command, f"{url}/moto-api/", folder / "moto.log", environ):
        client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=bucket)
        client.close()
        yield Endpoint("moto", url, bucket, KEYS)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(command: list[str], ready_url: str, log: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """A server that lasts as long as the context.

    Args:
        command: the program and its arguments.
        ready_url: answers as soon as the server does.
        log: what it says.
        environ: its own variables.
    """
    # /usr/bin/env sets the variables, for what else is in the environment is not ours to read.
    words = ["env", *(f"{name}={value}" for name, value in environ.items()), *command]
    with log.open("wb") as output:
        server = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us; we end it when the mount is gone
        )
    try:
        _wait_ready(server, ready_url, log)
        yield
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-500:]
                raise RuntimeError(f"{server.args!r} does not answer at {url}: {said}") from error
            time.sleep(0.05)
