"""Pages of ListObjectsV2 read ahead of botocore, against botocore alone."""

from datetime import datetime
from io import BytesIO
from typing import Any

import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.understore import s3_listing
from forebay.cacheruntime.understore.s3_listing import read_objects_ahead

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
HEAD = f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{NAMESPACE}">'
TIMES = ["2009-10-12T17:50:30.000Z", "2009-10-12T17:50:30Z", "2024-02-29T23:59:59.999Z"]


class _Raw(BytesIO):
    def stream(self, **_: Any) -> Any:
        yield self.read()


class _Bucket:
    """A client that is sent the page that a test has set."""

    def __init__(self) -> None:
        session = botocore.session.Session()
        session.set_credentials("key", "secret")
        config = Config(retries={"total_max_attempts": 1, "mode": "standard"})
        self._client = session.create_client(
            "s3", endpoint_url="http://127.0.0.1:9", region_name="us-east-1", config=config
        )
        self._client.meta.events.register("before-send.s3.ListObjectsV2", self._answer)
        self.events = self._client.meta.events
        self._page, self._status = b"", 200

    @classmethod
    def ahead(cls) -> "_Bucket":
        made = cls()
        read_objects_ahead(made._client)
        return made

    def _answer(self, request: Any, **_: Any) -> AWSResponse:
        return AWSResponse(request.url, self._status, {}, _Raw(self._page))

    def outcome(self, page: bytes, status: int = 200) -> tuple[str, Any]:
        """What a listing gives, objects without what an under-store does not look at; or how it fails."""
        self._page, self._status = page, status
        try:
            reply = self._client.list_objects_v2(Bucket="bucket")
        except Exception as error:  # noqa: BLE001 - whatever botocore raises for it
            return type(error).__name__, str(error)
        for item in reply.get("Contents", []):
            for member in item.keys() - {"Key", "LastModified", "ETag", "Size"}:
                del item[member]
            # A member that is there twice is a list of elements, which have no equality.
            item.update({name: len(value) for name, value in item.items() if isinstance(value, list)})
            # Other classes of time zone, the same moment.
            if isinstance(item.get("LastModified"), datetime):
                item["LastModified"] = item["LastModified"].timestamp(), item["LastModified"].utcoffset()
        return "page", reply


PLAIN, AHEAD = _Bucket(), _Bucket.ahead()


def contents(key: str, when: str = TIMES[0], etag: str = "&quot;1-2&quot;", size: str = "7", more: str = "") -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{when}</LastModified><ETag>{etag}</ETag>"
        f"<Size>{size}</Size>{more}</Contents>"
    )


def page(*parts: str, encoding: str = "<EncodingType>url</EncodingType>") -> bytes:
    text = f"{HEAD}<Name>bucket</Name><IsTruncated>false</IsTruncated>{encoding}{''.join(parts)}</ListBucketResult>"
    return text.encode()


OWNER = "<Owner><ID>i</ID><Key>no key</Key></Owner><StorageClass>STANDARD</StorageClass>"
FOLDER = "<CommonPrefixes><Prefix>d%2F</Prefix></CommonPrefixes>"

READ_AHEAD = {
    "one": page(contents("a")),
    "several, folders between": page(FOLDER, contents("a"), FOLDER, contents("b"), contents("c"), FOLDER),
    "encoded": page(contents("a%2Fb+c%25%00%0A%E6%97%A5"), contents("%FF%zz%")),
    "not encoded": page(contents("a%2Fb+c 日本"), contents("x&amp;&lt;y&#x41;"), encoding=""),
    "empty values": page(contents("", etag="")),
    "white space": page("\n  ", contents(" a\tb\n", size=" 7\n", when=TIMES[1]), "\n  "),
    "other members": page(contents("a", more=OWNER), contents("b", more="<RestoreStatus/><x><y><z/></y></x>")),
    "times": page(*(contents(f"k{n}", when) for n, when in enumerate([*TIMES, "2009-10-12 17:50:30+02:00", "0"]))),
    "text in pieces": page(contents("a<!-- Contents -->b<?x y?>c<![CDATA[<Contents>&]]>d")),
    "members missing": page("<Contents><Key>a</Key></Contents>", "<Contents></Contents>"),
    "end tags with spaces": page(contents("a").replace("</Contents>", "</Contents  >").replace("</Key>", "</Key\n>")),
    "attributes of members": page(contents("a").replace("<Key>", '<Key x="&gt;>" y="1">')),
    "no namespace": page(contents("a")).replace(f' xmlns="{NAMESPACE}"'.encode(), b""),
    "byte order mark": b"\xef\xbb\xbf" + page(contents("a"), contents("b")),
    "another declaration": page(contents("\xe9")).replace(b'"UTF-8"', b'"ISO-8859-1"'),
    "no objects": page(),
    "contents deeper": page("<x>", contents("inner"), "</x>", contents("a")),
    "size large": page(contents("a", size="5497558138880")),
}

LEFT_TO_BOTOCORE = {
    "key twice": page(contents("a", more="<Key>b</Key>")),
    "children in a key": page(contents("a<b>c</b>d")),
    "prefix": page('<p:Contents xmlns:p="x"><Key>a</Key></p:Contents>'),
    "attributes": page('<Contents x="&gt;/>"><Key>a</Key></Contents>'),
    "empty element": page("<Contents />", contents("a")),
    "size no number": page(contents("a", size="many")),
    "size empty": page(contents("a", size="")),
    "time no time": page(contents("a", when="yesterdayish")),
    "time impossible": page(contents("a", when="2009-13-12T17:50:30Z")),
    "entities": page(contents("&e;")).replace(b"<ListBucketResult", b"<!DOCTYPE l [<!ENTITY e 'x'>]><ListBucketResult"),
    "control characters": page(contents("a\x01b"), encoding=""),
    "not UTF-8": page(contents("a")).replace(b"<Key>a", b"<Key>\xff"),
    "undeclared prefix": page(contents("a").replace("Key>", "q:Key>")),
    "cut off": page(contents("a"), contents("b"))[:-30],
    "more behind": page(contents("a")) + b"<x/>",
    "nothing": b"",
    "no XML": b"<html><br>It works!</html>",
    "an error": b"<Error><Code>SlowDown</Code><Message>m</Message></Error>",
}


@pytest.mark.parametrize("name", [*READ_AHEAD, *LEFT_TO_BOTOCORE])
def test_the_same_as_botocore(name: str) -> None:
    body = {**READ_AHEAD, **LEFT_TO_BOTOCORE}[name]
    assert AHEAD.outcome(body) == PLAIN.outcome(body)


@pytest.mark.parametrize("status", [206, 301, 403, 404, 500, 503])
def test_other_statuses_are_botocores(status: int) -> None:
    for body in (page(contents("a")), LEFT_TO_BOTOCORE["an error"], b""):
        assert AHEAD.outcome(body, status) == PLAIN.outcome(body, status)


@pytest.mark.parametrize("name", READ_AHEAD)
def test_botocore_sees_no_objects(name: str) -> None:
    """Its own check for errors in the body, which parses all of it, comes behind us."""
    bodies: list[bytes] = []
    bucket = _Bucket.ahead()
    bucket.events.register_first("before-parse.s3.*", lambda response_dict, **_: bodies.append(response_dict["body"]))
    bucket.outcome(READ_AHEAD[name])
    outside = bodies[0].replace(contents("inner").encode(), b"")
    assert b"<Contents" not in outside


@pytest.mark.parametrize("name", LEFT_TO_BOTOCORE)
def test_what_is_not_plain_is_left_alone(name: str) -> None:
    response = {"status_code": 200, "body": LEFT_TO_BOTOCORE[name]}
    customized: dict[str, Any] = {}
    s3_listing._before_parse(response, customized)
    assert customized == {}
    assert response["body"] == LEFT_TO_BOTOCORE[name]


PIECES = st.sampled_from([
    "<Contents>", "</Contents>", "<Contents/>", "<Key>", "</Key>", "<Size>1</Size>", "<Size>", "</Size>", "a", "&amp;",
    "%2F", "<!-- <Key> -->", "<![CDATA[</Contents>]]>", "<x>", "</x>", FOLDER, contents("k"), contents("日"),
    "\n", "<Owner><Key>o</Key></Owner>", "<LastModified>2009-10-12T17:50:30Z</LastModified>", '<ETag q="1">e</ETag>',
])  # fmt: skip


@given(st.lists(PIECES, max_size=12), st.booleans())
def test_any_page_is_the_same(pieces: list[str], encoded: bool) -> None:
    body = page(*pieces, **({} if encoded else {"encoding": ""}))
    assert AHEAD.outcome(body) == PLAIN.outcome(body)


LEAVES = st.sampled_from(["<Key>k</Key>", "<Size>1</Size>", "<ETag>e</ETag>", OWNER, "\n", "<Key/>", "t"])


@given(st.lists(st.lists(LEAVES, max_size=5).map(lambda leaves: f"<Contents>{''.join(leaves)}</Contents>"), max_size=5))
def test_any_well_formed_page_is_the_same(objects: list[str]) -> None:
    body = page(*objects)
    assert AHEAD.outcome(body) == PLAIN.outcome(body)
