"""Sources to read from: an S3 endpoint on loopback, started here, or one that is there already.

Two are started here. moto answers the whole S3 protocol but makes each reply in Python, so it is slower than what it
feeds. nginx sends ranges by sendfile and is faster than its reader: there the reader's own cost shows. Its listing is
a file written ahead; names must hold no slash.
"""

import shutil
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
from xml.sax.saxutils import escape

import botocore.session
import obstore
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import S3Config

_READY_S = 20.0
_UPLOADS = 4  # at once; more only queue in moto's one interpreter

_KEYS = {"AWS_ACCESS_KEY_ID": "forebay-bench", "AWS_SECRET_ACCESS_KEY": "forebay-bench"}

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
        return self._store(self.bucket, dataset)

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

    def _store(self, bucket: str, prefix: str) -> S3Store:
        config: S3Config = {"endpoint": self.url, "region": self.region, "virtual_hosted_style_request": False}
        if self.environ:
            config["access_key_id"] = self.environ["AWS_ACCESS_KEY_ID"]
            config["secret_access_key"] = self.environ["AWS_SECRET_ACCESS_KEY"]
        return S3Store(bucket, prefix=prefix or None, config=config, client_options={"allow_http": True})


@dataclass(frozen=True)
class FolderEndpoint(Endpoint):
    """nginx over a folder. Datasets are buckets; publishing is a hard link and a new listing."""

    folder: Path = Path()

    def source(self, dataset: str) -> str:
        return f"s3://{dataset}"

    def store(self, dataset: str) -> S3Store:
        return self._store(dataset, "")

    def publish(self, dataset: str, files: Mapping[str, Path], done: Done = lambda _: None) -> None:
        """Put local files there; they must lie on the same file system, and stay unchanged."""
        (self.folder / dataset).mkdir()
        items = []
        for key in sorted(files):
            place = self.folder / dataset / key
            place.hardlink_to(files[key])
            stat = place.stat()
            # nginx's ETag (ngx_http_set_etag): seconds and size in hexadecimal.
            etag = f"&quot;{int(stat.st_mtime):x}-{stat.st_size:x}&quot;"
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
            items.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>{etag}</ETag>"
                f"<Size>{stat.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
            done(stat.st_size)
        (self.folder / f"{dataset}.xml").write_text(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{dataset}</Name><Prefix></Prefix>'
            f"<KeyCount>{len(items)}</KeyCount><IsTruncated>false</IsTruncated>{''.join(items)}</ListBucketResult>"
        )

    def withdraw(self, dataset: str, keys: list[str]) -> None:
        """The folder goes with us."""


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
    with _serving(command, f"{url}/moto-api/", folder / "moto.log", environ):
        client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=bucket)
        client.close()
        yield Endpoint("moto", url, bucket, _KEYS)


def find_nginx() -> str | None:
    """Where nginx is; Debian puts it where only root's PATH leads."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def nginx_endpoint(folder: Path) -> Iterator[FolderEndpoint]:
    """nginx over a new folder below `folder`, ended on leaving. One process, so that one process id ends it."""
    program = find_nginx()
    assert program is not None, "ask find_nginx first"
    port = free_port()
    root = folder / "nginx"
    root.mkdir()
    temporary = " ".join(f"{kind}_temp_path {root}/tmp;" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (root / "nginx.conf").write_text(f"""\
daemon off;
master_process off;
pid {root}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000;
    client_body_temp_path {root}/tmp;
    {temporary}
    server {{
        listen 127.0.0.1:{port};
        location ~ ^/([^/]+)/?$ {{ root {root}; default_type application/xml; try_files /$1.xml =404; }}
        location / {{ root {root}; default_type application/octet-stream; }}
    }}
}}
""")
    (root / "ready.xml").write_text("<ready/>")
    url = f"http://127.0.0.1:{port}"
    command = [program, "-e", str(root / "error.log"), "-c", str(root / "nginx.conf")]
    with _serving(command, f"{url}/ready", folder / "nginx.log", {}):
        yield FolderEndpoint("nginx", url, "", _KEYS, folder=root)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _serving(command: list[str], ready_url: str, log: Path, environ: Mapping[str, str]) -> Iterator[None]:
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
