"""Sources, options and credentials: what they mean, before anything is contacted."""

import subprocess
import sys

import pytest

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.understore.credentials import redact, resolve_options
from forebay.cacheruntime.understore.factory import canonical_source, open_store
from forebay.cacheruntime.understore.objectstore import addressable
from forebay.cacheruntime.understore.options import flag, parsed, seconds
from forebay.cacheruntime.understore.web import links_below

RETRY = RetryConfig()


@pytest.mark.parametrize(
    ("source", "options", "url"),
    [
        ("s3://b", {}, "s3://b"),
        ("s3://b/", {}, "s3://b"),
        ("s3a://b/p/q/", {}, "s3://b/p/q"),
        ("S3N://b//p//q//", {}, "s3://b/p//q"),
        ("s3://b/a b?c#d%20", {}, "s3://b/a b?c#d%20"),
        ("s3://b/p", {"endpoint": "http://h:9000/"}, "s3+http://h:9000/b/p"),
        ("s3://b/p", {"endpoint": "HTTP://H:80"}, "s3+http://h/b/p"),
        ("s3://b/p", {"endpoint": "h.example:443"}, "s3+https://h.example/b/p"),
        ("s3://b/p", {"endpoint": "http://[::1]:9000"}, "s3+http://[::1]:9000/b/p"),
        ("s3://b/p", {"endpoint": "https://s3.eu-west-1.amazonaws.com"}, "s3://b/p"),
        ("s3://b/p", {"endpoint": "https://user:pw@h"}, "s3+https://h/b/p"),
        ("s3://b/p", {"region": "eu-west-1", "access_key_id": "x", "anon": "true"}, "s3://b/p"),
        ("gs://b/p/", {}, "gs://b/p"),
        ("gcs://b", {"endpoint": "http://h:4443"}, "gs+http://h:4443/b"),
        ("az://c/p", {"account_name": "acc"}, "az://c@acc/p"),
        ("abfss://c@acc.dfs.core.windows.net/p/", {}, "az://c@acc/p"),
        ("/data/x/", {}, "file:///data/x"),
        ("/data/../y", {}, "file:///y"),
        ("//data", {}, "file:///data"),
        ("file:///data/a b%20/", {}, "file:///data/a b%20"),
        ("file:/data", {}, "file:///data"),
        ("/", {}, "file:///"),
        ("http://user:pw@Host:80/Dir/", {}, "http://host:80/Dir"),
        ("https://host", {}, "https://host"),
        ("https://host/f?x=1", {}, "https://host/f?x=1"),
        ("memory://d/", {}, "memory://d"),
        ("hdfs://me@nn:8020/d/", {}, "hdfs://nn:8020/d"),
        ("github://", {"org": "o", "repo": "r", "token": "t"}, "github://#org=o&repo=r"),
    ],
)
def test_canonical_source(source: str, options: dict[str, str], url: str) -> None:
    assert canonical_source(source, options) == url


@pytest.mark.parametrize("url", ["s3+http://h:9000/b/p", "gs+http://h:1/b", "az://c@acc/p", "file:///x", "s3://b/p//q"])
def test_canonical_urls_name_themselves(url: str) -> None:
    assert canonical_source(url, {}) == url


def test_relative_folder(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert canonical_source("./x", {}) == canonical_source("x", {}) == f"file://{tmp_path}/x"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("", {}, "source is empty"),
        ("s3://", {}, "names no bucket"),
        ("s3:///key", {}, "names no bucket"),
        ("nope://x", {}, r"scheme 'nope'.*known are .*file.*s3"),
        ("http://", {}, "names no host"),
        ("s3://b", {"endpoint": "ftp://h"}, "endpoint 'ftp://h'"),
        ("s3://b", {"endpoint": "http://h:x"}, "no valid port"),
    ],
)
def test_sources_that_mean_nothing(source: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        canonical_source(source, options)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("s3://b", {"regin": "x"}, "option 'regin'.*allowed: .*region"),
        ("gs://b", {"region": "x"}, "option 'region'"),
        ("/data", {"region": "x"}, "allowed: none"),
        ("s3://b", {"anon": "maybe"}, "anon='maybe' is neither"),
        ("s3://b", {"path_style": "x"}, "path_style"),
        ("s3://b", {"timeout": "-1"}, "timeout='-1'"),
        ("s3://b", {"access_key_id": "x"}, "only work together"),
        ("s3://b", {"ca_bundle": "/no/such.pem"}, "ca_bundle='/no/such.pem' cannot be read"),
    ],
)
def test_bad_options_are_named(source: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_store(source, options, RETRY)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("s3://b/p", {"endpoint": "http://h:9000"}),
        ("gs://b/p", {"anon": "true"}),
        ("az://c/p", {"account_name": "acc", "anon": "true"}),
        ("/data", {}),
        ("memory://d", {}),
        ("https://host/d", {}),
    ],
)
def test_store_url_is_the_canonical_source(source: str, options: dict[str, str]) -> None:
    store = open_store(source, options, RETRY)
    assert store.url == canonical_source(source, options)
    store.close()


def test_naming_a_dataset_loads_no_heavy_library() -> None:
    script = (
        "import sys; from forebay.cacheruntime.understore.factory import canonical_source, open_store;"
        "canonical_source('s3://b', {}); canonical_source('https://h/d', {});"
        "print({m.partition('.')[0] for m in sys.modules} & {'botocore', 'obstore', 'fsspec', 'aiohttp'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "set()"


AWS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_SESSION_TOKEN": "ST"}


@pytest.mark.parametrize(
    ("options", "environ", "wanted"),
    [
        ({}, {}, {}),
        ({}, AWS, {"access_key_id": "AK", "secret_access_key": "SK", "session_token": "ST"}),
        ({"anon": "true"}, AWS, {"anon": "true"}),
        ({"profile": "lab"}, AWS, {"profile": "lab"}),
        (
            {"access_key_id": "mine", "secret_access_key": "own"},
            AWS,
            {"access_key_id": "mine", "secret_access_key": "own"},
        ),
        ({}, {"AWS_PROFILE": "lab", "AWS_CONFIG_FILE": "/c"}, {"profile": "lab", "config_file": "/c"}),
        ({}, {**AWS, "AWS_PROFILE": "lab"}, {"access_key_id": "AK", "secret_access_key": "SK", "session_token": "ST"}),
        ({}, {"AWS_DEFAULT_REGION": "b"}, {"region": "b"}),
        ({}, {"AWS_REGION": "a", "AWS_DEFAULT_REGION": "b"}, {"region": "a"}),
        ({}, {"AWS_ENDPOINT_URL": "http://g", "AWS_ENDPOINT_URL_S3": "http://s"}, {"endpoint": "http://s"}),
        ({"endpoint": "http://mine"}, {"AWS_ENDPOINT_URL": "http://g"}, {"endpoint": "http://mine"}),
        (
            {},
            {"AWS_ROLE_ARN": "arn", "AWS_WEB_IDENTITY_TOKEN_FILE": "/t"},
            {"role_arn": "arn", "web_identity_token_file": "/t"},
        ),
        (
            {},
            {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2"},
            {"container_credentials_relative_uri": "/v2"},
        ),
        ({}, {"AWS_EC2_METADATA_DISABLED": "true"}, {"imds": "false"}),
    ],
)
def test_aws_environment(options: dict[str, str], environ: dict[str, str], wanted: dict[str, str]) -> None:
    found = resolve_options("s3://b/p", options, environ)
    assert found == wanted
    store = open_store("s3://b/p", found, RETRY)
    store.close()


@pytest.mark.parametrize(
    ("source", "environ", "wanted"),
    [
        ("gs://b", {"GOOGLE_APPLICATION_CREDENTIALS": "/k.json"}, {"application_credentials": "/k.json"}),
        ("gs://b", {"STORAGE_EMULATOR_HOST": "h:1"}, {"endpoint": "http://h:1"}),
        ("az://c", {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_KEY": "k"}, {"account_name": "a", "account_key": "k"}),
        (
            "az://c",
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=k==;EndpointSuffix=x"},
            {"account_name": "a", "account_key": "k=="},
        ),
        (
            "oss://b",
            {"OSS_ACCESS_KEY_ID": "i", "OSS_ACCESS_KEY_SECRET": "s", "OSS_ENDPOINT": "http://e"},
            {"key": "i", "secret": "s", "endpoint": "http://e"},
        ),
        ("/data", AWS, {}),
        ("https://h", AWS, {}),
    ],
)
def test_other_environments(source: str, environ: dict[str, str], wanted: dict[str, str]) -> None:
    assert resolve_options(source, {}, environ) == wanted


def test_files_are_made_absolute(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    found = resolve_options("s3://b", {}, {"AWS_CONFIG_FILE": "conf", "AWS_SHARED_CREDENTIALS_FILE": "~/c"})
    assert found == {"config_file": f"{tmp_path}/conf", "credentials_file": "~/c"}


def test_redact_hides_secrets_and_only_those() -> None:
    public = {"endpoint": "http://h", "region": "r", "anon": "true", "profile": "p", "account_name": "a",
              "web_identity_token_file": "/t", "timeout": "5"}  # fmt: skip
    secret = {"access_key_id": "x", "secret_access_key": "x", "session_token": "x", "account_key": "x", "sas_key": "x",
              "password": "x", "token": "x", "client_kwargs": '{"auth": 1}', "proxy": "http://u:p@h"}  # fmt: skip
    assert redact({**public, **secret}) == {**public, **dict.fromkeys(secret, "***")}


def test_option_values() -> None:
    options = {"a": "True", "b": "no", "c": "12", "d": '{"x": [1]}', "e": "text", "password": "123", "f": "007"}
    assert parsed(options) == {
        "a": True, "b": "no", "c": 12, "d": {"x": [1]}, "e": "text", "password": "123", "f": "007",
    }  # fmt: skip
    assert flag({"x": "1"}, "x", False) is True
    assert flag({}, "x", True) is True
    assert seconds({"t": "2.5s"}, "t", 1.0) == 2.5
    for bad in ("x", "0", "-1", "inf", "nan"):
        with pytest.raises(UsageError):
            seconds({"t": bad}, "t", 1.0)
    with pytest.raises(UsageError, match="option d begins like JSON"):
        parsed({"d": "{x"})


def test_addressable() -> None:
    assert all(addressable(key) for key in ("a", "a/b", "a b", "ü", "...", "a%2Fb"))
    assert not any(addressable(key) for key in ("", "/a", "a/", "a//b", "./a", "a/..", "a\nb", "\x7f"))


def test_links_below() -> None:
    page = """<A HREF="a.txt">1</A> <a class=x href='b%20c'>2</a> <a href=d/>3</a> <a href="../">up</a>
    <a href="?C=N;O=D">sort</a> <a href="/dir/e&amp;f">4</a> <a href="/other/g">no</a> <a href="deep/er">no</a>
    <a href="http://else/dir/h">no</a> <a href="http://host/dir/i">5</a> <a href="a.txt#part">1</a>
    <a href="./">no</a> <a href="mailto:x@y">no</a> <a href="http://[bad">no</a> <a name="n">no</a>"""
    assert links_below("http://host/dir/", page) == ["a.txt", "b c", "d/", "e&f", "i"]
