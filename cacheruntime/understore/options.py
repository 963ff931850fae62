"""Values of options: text from the command line made into what the stores take."""

import json
from collections.abc import Mapping

from forebay.cacheruntime.errors import UsageError

CONNECT_TIMEOUT_S = 5.0
"""A store that does not answer a SYN in this time is down or firewalled; also obstore's own default."""

READ_TIMEOUT_S = 20.0
"""Silence this long within a reply means a dead connection; S3's slowest first bytes are a few seconds."""

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def flag(options: Mapping[str, str], name: str, default: bool) -> bool:
    """A true/false option.

    Raises:
        UsageError: neither true nor false.
    """
    text = options.get(name)
    if text is None or text == "":
        return default
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise UsageError(f"option {name}={text!r} is neither true nor false")


def seconds(options: Mapping[str, str], name: str, default: float) -> float:
    """A positive number of seconds; a trailing `s` is allowed.

    Raises:
        UsageError: not a positive number.
    """
    text = options.get(name)
    if not text:
        return default
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"option {name}={text!r} is not a positive number of seconds; write it like 5 or 2.5")
    return value


def parsed(options: Mapping[str, str]) -> dict[str, object]:
    """Options as fsspec wants them: true, false, whole numbers and JSON objects or lists as such, else text.

    Raises:
        UsageError: begins like JSON and is not.
    """
    return {name: _parsed_value(name, text) for name, text in options.items()}


def _parsed_value(name: str, text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.isdecimal() and (text == "0" or not text.startswith("0")) and not _is_text(name):
        return int(text)
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise UsageError(f"option {name} begins like JSON and is not: {error}") from error
    return text


def _is_text(name: str) -> bool:
    """Whether a value of digits only is still text: a password or account may well be one."""
    return any(part in name.lower() for part in ("pass", "secret", "key", "token", "user", "account", "sha", "ref"))
