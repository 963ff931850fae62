"""Who is in the cluster, by what directory and workers say."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trio

from forebay.cacheruntime.cluster.directory import Dns
from forebay.cacheruntime.cluster.membership import Address, Known, Membership
from forebay.cacheruntime.cluster.placement import WorkerId
from forebay.cacheruntime.errors import SourceUnavailable
from forebay.proto import peer_pb2 as pb


class Workers:
    """Answers Identify for all that there are."""

    def __init__(self, **replies: pb.IdentifyReply) -> None:
        self.replies = replies

    def stub(self, address: Address) -> Any:
        reply = self.replies.get(address)

        def result() -> pb.IdentifyReply:
            if reply is None:
                raise grpc.RpcError
            return reply

        future = SimpleNamespace(add_done_callback=lambda call: call(None), result=result, cancel=lambda: None)
        return SimpleNamespace(Identify=SimpleNamespace(future=lambda *_, **__: future))


class Directory:
    def __init__(self, *addresses: str) -> None:
        self.now = set(addresses)
        self.trouble = ""

    def addresses(self) -> set[str]:
        if self.trouble:
            raise SourceUnavailable(self.trouble)
        return self.now


def says(worker: str, *members: str, port: int = 1) -> pb.IdentifyReply:
    return pb.IdentifyReply(id=worker, state="serving", capacity_bytes=1, data_port=port, members=members)


def look(membership: Membership, times: int = 1) -> list[str]:
    async def run() -> None:
        for _ in range(times):
            await membership.look()

    trio.run(run)
    return [member.id for member in membership.view.members]


def test_a_client_knows_all_that_any_member_names_until_none_names_it(tmp_path: Path) -> None:
    async def made() -> Membership:
        return Membership(Directory("a", "b"), None, workers.stub, tmp_path / "peers", learn=True)

    workers = Workers(a=says("A", "a", "c"), b=says("B", "b", "d"), c=says("C", "c"), d=says("D", "d"))
    membership = trio.run(made)
    views = {tuple(look(membership)) for _ in range(4)}
    assert views == {("A", "B", "C", "D")}
    workers.replies["a"] = says("A", "a")
    assert look(membership) == ["A", "B", "D"]  # C runs on, and still names itself
    workers.replies = {"d": says("D", "b", "d")}
    assert look(membership, 2) == ["A", "B", "D"]


def test_a_worker_with_the_same_id_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def made() -> Membership:
        mine = Known(WorkerId("A"), Address("a"), 1, 1, "serving")
        return Membership(Directory("a", "alias", "copy"), mine, workers.stub, tmp_path / "peers")

    workers = Workers(alias=says("A"), copy=says("A", port=2))
    membership = trio.run(made)
    with caplog.at_level(logging.WARNING):
        assert look(membership, 3) == ["A"]
    assert [record.args for record in caplog.records] == [("copy",)]
    caplog.clear()


def test_a_directory_that_does_not_answer_is_logged_once_and_what_was_known_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def made() -> Membership:
        return Membership(directory, None, Workers(a=says("A")).stub, tmp_path / "peers")

    directory = Directory("a")
    membership = trio.run(made)
    assert look(membership) == ["A"]
    directory.trouble = "no"
    with caplog.at_level(logging.WARNING):
        assert look(membership, 3) == ["A"]
    assert len(caplog.records) == 1
    caplog.clear()


def test_a_name_that_is_none_is_an_error_of_the_directory() -> None:
    with pytest.raises(SourceUnavailable, match=r"a\.\.b cannot be resolved"):
        Dns("a..b", 7070).addresses()
