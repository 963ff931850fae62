"""moto's S3, filled from within. A program.

``python store_server.py HOST:PORT`` ends with its standard input, and answers each line of JSON:
``["fill", BUCKET, PREFIX, [SMALL, LARGE, SEED]]`` puts the files of that `FileSet` into a bucket, made if need be.
"""

import json
import logging
import sys

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import S3Backend, s3_backends
from moto.server import ThreadedMotoServer
from named_files import FileSet, content, size_of

_REGION = "us-east-1"


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address=host, port=int(port), verbose=False)
    server.start()
    backend: S3Backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for line in sys.stdin:
        _, bucket, prefix, (small, large, seed) = json.loads(line)
        if bucket not in backend.buckets:
            backend.create_bucket(bucket, _REGION)
        for name in FileSet(small, tuple(large), seed).names:
            backend.put_object(bucket, f"{prefix}{name}", content(name, 0, size_of(name)))
        print(json.dumps(None), flush=True)
    server.stop()


if __name__ == "__main__":
    main()
