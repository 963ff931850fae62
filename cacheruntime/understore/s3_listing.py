"""The objects of a ListObjectsV2 page, read by expat ahead of botocore's parser.

botocore's parser is made for every AWS service, and takes 70 us for a key (1.43, one core; dateutil reads the times);
this takes 5. botocore keeps all else: it sends and signs, tells errors from listings, and decodes the keys. Its event
`before-parse` hands out the body. What is read here is cut out of it, so that botocore parses the rest; a page that is
not as plain as S3 sends it is left to botocore as a whole.
"""

from datetime import datetime
from functools import lru_cache
from typing import Any
from xml.parsers import expat

from botocore.utils import parse_timestamp

_WANTED = {"Key": "Key", "LastModified": "LastModified", "ETag": "ETag", "Size": "Size"}
"""Members of an object that an under-store looks at. The values are the keys: one string object for all pages."""

_MOMENT_LENGTHS = (20, 24)
"""Of "2009-10-12T17:50:30Z" and "2009-10-12T17:50:30.000Z"."""


def read_objects_ahead(client: Any) -> None:
    """Have a client's `list_objects_v2` give `Contents` made here: the same, less the members that nobody asks for."""
    # Handlers of a wildcard come first: botocore's own for this event parses the body to see whether it is an error.
    client.meta.events.register_first("before-parse.*.ListObjectsV2", _before_parse)


def _before_parse(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    body = response_dict.get("body")
    if response_dict.get("status_code") != 200 or not isinstance(body, bytes):
        return
    try:
        objects, rest = _parsed(body)
    except (_NotPlain, expat.ExpatError, ValueError, OverflowError):
        return  # botocore says what is wrong with it, or reads it
    if objects:
        response_dict["body"] = rest
        customized_response_dict["Contents"] = objects


class _NotPlain(Exception):
    """Valid, perhaps, but nothing that S3 sends."""


def _parsed(body: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The objects of a page, and the page without them.

    Names are compared without their namespace, as botocore does. One function over local variables: its three
    inner ones are called twenty times for each key.

    Raises:
        _NotPlain, ExpatError, ValueError, OverflowError: not to be read here.
    """
    objects: list[dict[str, Any]] = []
    kept: list[bytes] = []
    cut_to = depth = 0
    members: dict[str, str] = {}
    made: dict[str, Any] | None = None
    member = text = ""
    # As botocore's ElementTree: UTF-8 whatever the declaration says, and prefixes must be declared.
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text = True

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, made, member, text
        depth += 1
        if depth == 3 and made is not None:
            known = members.get(name)
            if known is None:
                known = members[name] = _WANTED.get(name.rpartition("}")[2], "")
            if known in made:
                raise _NotPlain
            member, text = known, ""
        elif depth == 2 and name.rpartition("}")[2] == "Contents":
            at = parser.CurrentByteIndex
            if attributes or not body.startswith(b"<Contents", at):
                raise _NotPlain
            kept.append(body[cut_to:at])
            made = {}
        elif member:
            raise _NotPlain

    def data(more: str) -> None:
        nonlocal text
        text += more

    def end(name: str) -> None:
        nonlocal depth, made, member, cut_to
        depth -= 1
        if depth == 2:
            if member:
                assert made is not None
                made[member] = text
                member = ""
        elif depth == 1 and made is not None:
            if "Size" in made:
                made["Size"] = int(made["Size"])
            if "LastModified" in made:
                made["LastModified"] = _moment(made["LastModified"])
            objects.append(made)
            made = None
            at = parser.CurrentByteIndex
            if not body.startswith(b"</Contents", at):  # an empty element: expat is at its end
                raise _NotPlain
            cut_to = body.index(b">", at) + 1

    def doctype(*_: object) -> None:
        raise _NotPlain  # with entities, places in the text are no places in the body

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = data, doctype
    parser.Parse(body, True)
    parser.StartElementHandler = parser.EndElementHandler = None  # else a page would live until the next collection
    return objects, b"".join(kept) + body[cut_to:]


@lru_cache(256)
def _moment(text: str) -> datetime:
    if len(text) in _MOMENT_LENGTHS and text[10] == "T" and text[-1] == "Z":
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass
    moment: datetime = parse_timestamp(text)
    return moment
