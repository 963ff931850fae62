"""The S3 endpoint of the benchmark: nginx, which sends files by sendfile and is not the limit of any side.

Folders are buckets. nginx sends, takes and deletes objects by itself; listings come from `forebay.bench.listing`
behind it. The same files are served on two ports: at once, and after a wait that Debian's echo module (package
libnginx-mod-http-echo) adds to each request. A waiting request is a timer in nginx: it costs no CPU time and holds up
no other request.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from obstore.store import S3Store

from forebay.bench.endpoint import KEYS, Done, Endpoint, free_port, serving

_ECHO_MODULES = ("/usr/lib/nginx/modules/ngx_http_echo_module.so", "/usr/lib64/nginx/modules/ngx_http_echo_module.so")

LATENCY_S = 0.020
"""Added to each request of the cold lines: an object store in the same region."""


@dataclass(frozen=True)
class FolderEndpoint(Endpoint):
    """nginx over a folder. Datasets are buckets; publishing is a hard link."""

    folder: Path = Path()
    distant_url: str | None = None
    """The same with LATENCY_S added; None without the echo module."""

    def distant(self) -> "FolderEndpoint | None":
        """The same objects behind the latency; None where it cannot be had."""
        return replace(self, url=self.distant_url) if self.distant_url else None

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
    near, distant, listing = free_port(), free_port(), free_port()
    configuration = _nginx_configuration(root, state, (near, distant, listing), echo)
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
        )


def _nginx_configuration(root: Path, state: Path, ports: tuple[int, int, int], echo: str | None) -> str:
    near, distant, listing = ports
    bucket = r"~ ^/[^/]+/?$"
    # In S3 a folder is no object; nginx would redirect.
    objects = (
        f"root {root}; default_type application/octet-stream; if (-d $request_filename) {{ return 404; }}"
        " dav_methods PUT DELETE; create_full_put_path on;"
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
    }}{waits if echo else ""}
}}
"""
