"""Clients with tokens before workers of which only some know the dataset."""

import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from loopback import Loopback
from range_server import RangeServer
from source_tree import MIB

from forebay.cacheruntime.cluster.certs import Role
from forebay.cacheruntime.cluster.tokens import Verb, create_token
from forebay.proto import worker_pb2 as pb

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from parties import Parties


@pytest.fixture
def server() -> Iterator[RangeServer]:
    made = RangeServer(8, MIB)
    yield made
    made.close()


def test_a_token_is_good_with_workers_that_have_not_heard_of_the_dataset(server: RangeServer, tmp_path: Path) -> None:
    parties = Parties.create(tmp_path / "ca")
    options = dict(text.split("=", 1) for text in server.args[1::2])
    name = f"s3+{options['endpoint']}/bucket"
    token = create_token(tmp_path / "ca", [name], [Verb.READ, Verb.LIST], time.time())
    bundle = parties.issue("c", Role.CLIENT)
    (bundle / "token").write_text(token)
    cluster = Loopback(tmp_path, 3, options, tls=str(parties.issue("w")))
    try:
        cluster.attach(server.source)
        client = cluster.client(tls=str(bundle))
        for number in range(8):
            assert sha256(client.read(server.source, str(number))).hexdigest() == server.digest(number)
        peers = client.client.call("Traffic", pb.TrafficRequest()).peers
        assert sum(peer.errors for peer in peers) == 0
        assert len(server.gets) == 8
    finally:
        cluster.close()
