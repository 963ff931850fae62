"""The S3 endpoint of the benchmark: nginx, which sends files by sendfile and is not the limit of any side.

Folders are buckets. nginx sends, takes and deletes objects by itself; listings come from `forebay.bench.listing`
behind it. The same files are served on two ports: at once, and after a wait that Debian's echo module (package
libnginx-mod-http-echo) adds to each request. A waiting request is a timer in nginx: it costs no CPU time and holds up
no other request. A third port gives each connection a limited rate (nginx's limit_rate, timers too; what a connection
may send in its first second goes at once). What leaves for objects is counted in nginx's access log: bytes of replies,
those of aborted ones included as far as they were sent; listings and uploads are not counted.
"""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from obstore.store import S3Store

from forebay.bench.endpoint import KEYS, Done, Endpoint, free_port, serving

_ECHO_MODULES = ("/usr/lib/nginx/modules/ngx_http_echo_module.so", "/usr/lib64/nginx/modules/ngx_http_echo_module.so")

LATENCY_S = 0.020
"""Added to each request of the cold lines: an object store in the same region."""

LIMIT_BYTES_S = 1 << 20
"""For each connection of the limited port. nginx limits by whole seconds: a reply of 8 MiB takes 7."""

_FLUSH_S = 0.2
"""nginx writes its log this often, as a write for each request would cost what is measured elsewhere."""

_QUIET_S = 3 * _FLUSH_S


class Sent(NamedTuple):
    """One reply to a GET of an object."""

    key: str
    """BUCKET/KEY as it was in the URL."""
    start: int
    """Offset of its first byte."""
    size: int
    """Bytes of its body that were sent."""


def parse_sent(line: str) -> Sent:
    """A line of the access log: bytes sent, the request's URI, and the reply's Content-Range or '-'."""
    size, uri, sent = line.rstrip("\n").split(" ", 2)
    first = sent.removeprefix("bytes ").partition("-")[0]
    return Sent(uri.partition("?")[0].lstrip("/"), int(first or 0), int(size))


@dataclass(frozen=True)
class FolderEndpoint(Endpoint):
    """nginx over a folder. Datasets are buckets; publishing is a hard link."""

    folder: Path = Path()
    distant_url: str | None = None
    """The same with LATENCY_S added; None without the echo module."""
    limited_url: str = ""
    """The same with LIMIT_BYTES_S for each connection."""
    log: Path = Path()
    """A line for each request of an object: the bytes sent, its path, and the range that was sent."""

    def distant(self) -> "FolderEndpoint | None":
        """The same objects behind the latency; None where it cannot be had."""
        return replace(self, url=self.distant_url) if self.distant_url else None

    def limited(self) -> "FolderEndpoint":
        """The same objects at a limited rate for each connection."""
        return replace(self, url=self.limited_url)

    def sent_bytes(self) -> int:
        """What objects were read with so far, over all datasets and ports; waits until no more comes."""
        return sum(sent.size for sent in self.sent())

    def sent(self) -> list[Sent]:
        """Each reply to a GET of an object so far, over all datasets and ports; waits until no more comes."""
        sizes = (-1, self.log.stat().st_size)
        while sizes[0] != sizes[1]:
            time.sleep(_QUIET_S)
            sizes = (sizes[1], self.log.stat().st_size)
        with self.log.open() as lines:
            return [parse_sent(line) for line in lines]

    def source(self, dataset: str) -> str:
        return f"s3://{dataset}"

    def store(self, dataset: str) -> S3Store:
        return self.client(dataset, "")

    def publish(self, dataset: str, files: Mapping[str, Path], done: Done = lambda _: None) -> None:
        """Put local files there; they must lie on the same file system, and stay unchanged."""
        bucket = self.folder / dataset
        bucket.mkdir()
        for folder in {(bucket / key).parent for key in files}:
            folder.mkdir(parents=True, exist_ok=True)
        for key, path in files.items():
            (bucket / key).hardlink_to(path)
            done(path.stat().st_size)

    def withdraw(self, dataset: str, keys: list[str]) -> None:
        """Remove the bucket."""
        shutil.rmtree(self.folder / dataset)


def find_nginx() -> str | None:
    """Where nginx is; Debian puts it where only root's PATH leads."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def find_echo() -> str | None:
    """Where nginx's echo module is."""
    return next((path for path in _ECHO_MODULES if Path(path).exists()), None)


@contextmanager
def sendfile_endpoint(folder: Path) -> Iterator[FolderEndpoint]:
    """nginx over a new folder below `folder`, ended on leaving. One process, so that one process id ends it.

    Args:
        folder: on the disk that the local copies are on.
    """
    program, echo = find_nginx(), find_echo()
    assert program is not None, "ask find_nginx first"
    root, state = folder / "buckets", folder / "nginx"
    root.mkdir()
    state.mkdir()
    (root / "ready").mkdir()
    near, distant, limited, listing = free_port(), free_port(), free_port(), free_port()
    configuration = _nginx_configuration(root, state, (near, distant, limited, listing), echo)
    (state / "nginx.conf").write_text(configuration)
    command = [program, "-e", str(state / "error.log"), "-c", str(state / "nginx.conf")]
    lister = [sys.executable, "-m", "forebay.bench.listing", str(root), str(listing)]
    with (
        serving(lister, f"http://127.0.0.1:{listing}/ready", state / "listing.log", {}),
        serving(command, f"http://127.0.0.1:{near}/ready", state / "nginx.log", {}),
    ):
        yield FolderEndpoint(
            "nginx",
            f"http://127.0.0.1:{near}",
            "",
            KEYS,
            folder=root,
            distant_url=f"http://127.0.0.1:{distant}" if echo else None,
            limited_url=f"http://127.0.0.1:{limited}",
            log=state / "sent.log",
        )


def _nginx_configuration(root: Path, state: Path, ports: tuple[int, int, int, int], echo: str | None) -> str:
    near, distant, limited, listing = ports
    bucket = r"~ ^/[^/]+/?$"
    # In S3 a folder is no object; nginx would redirect.
    objects = (
        f"root {root}; default_type application/octet-stream; if (-d $request_filename) {{ return 404; }}"
        " dav_methods PUT DELETE; create_full_put_path on;"
        f" access_log {state}/sent.log sent buffer=64k flush={_FLUSH_S * 1000:.0f}ms;"
    )
    # 1.1 with an empty Connection: the listing's connections are kept.
    lists = 'proxy_pass http://listing; proxy_http_version 1.1; proxy_set_header Connection "";'
    waits = f"""
    server {{
        listen 127.0.0.1:{distant};
        location {bucket} {{ echo_sleep {LATENCY_S:g}; echo_exec @list; }}
        location / {{ echo_sleep {LATENCY_S:g}; echo_exec @object; }}
        location @list {{ {lists} }}
        location @object {{ {objects} }}
    }}"""
    temporary = " ".join(
        f"{kind}_temp_path {state}/tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
{f"load_module {echo};" if echo else ""}
daemon off;
master_process off;
pid {state}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    log_format sent "$body_bytes_sent $request_uri $sent_http_content_range";
    access_log off;
    sendfile on;
    tcp_nodelay on;
    keepalive_requests 1000000;
    client_max_body_size 0;
    {temporary}
    upstream listing {{ server 127.0.0.1:{listing}; keepalive 16; }}
    server {{
        listen 127.0.0.1:{near};
        location {bucket} {{ {lists} }}
        location / {{ {objects} }}
    }}
    server {{
        listen 127.0.0.1:{limited};
        location {bucket} {{ {lists} }}
        location / {{ limit_rate {LIMIT_BYTES_S}; {objects} }}
    }}{waits if echo else ""}
}}
"""
