"""Nothing that looks like a credential leaves in a bundle."""

import pytest

from forebay.cli.bundle_commands import without_secrets


@pytest.mark.parametrize(
    "line",
    [
        "secret_access_key=XYZZY",
        "aws_secret_access_key = 'XYZZY'",
        '{"password": "XYZZY", "user": "u"}',
        "https://user:XYZZY@host/path",
        "Authorization: Bearer XYZZY",
        "authorization: AWS4-HMAC-SHA256 XYZZY",
        "X-Amz-Signature=XYZZY&x=1",
        "sas_token: XYZZY",
        "access_key_id=XYZZY",
        "session-token=XYZZY",
    ],
)
def test_struck_out(line: str) -> None:
    found = without_secrets(f"before {line} after")
    assert "XYZZY" not in found
    assert found.startswith("before ")


@pytest.mark.parametrize("line", ["s3://bucket/key", "worker 12: listing of s3://b broke off"])
def test_left_alone(line: str) -> None:
    assert without_secrets(line) == line
