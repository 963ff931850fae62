"""What `forebay certs` and `forebay token` do. Keys go into files only; a token is printed when no file was named."""

import json as jsonlib
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forebay.cacheruntime.cluster import bundle, certs, tokens
from forebay.cacheruntime.cluster.certs import CA_CERT, CA_KEY, Role, refuse_to_replace, write_secret
from forebay.cacheruntime.config import parse_duration
from forebay.cacheruntime.dataset_reference import DEFAULT_NAMESPACE
from forebay.cacheruntime.errors import UsageError


def init_certs(folder: Path, days: int, force: bool) -> None:
    refuse_to_replace([folder / name for name in (CA_KEY, CA_CERT, tokens.PRIVATE, tokens.PUBLIC)], force)
    certs.create_authority(folder, datetime.now(UTC), days, force)
    tokens.create_keys(folder, force=force)
    print(f"{folder} is an authority; {CA_KEY} and {tokens.PRIVATE} are secrets and stay there")
    print(f"next: forebay certs issue {folder} NAME --worker, for each worker; --client for each client")


def issue_certs(
    folder: Path, name: str, worker: bool, client: bool, hosts: list[str], days: int, out: Path | None, force: bool
) -> None:
    if worker == client:
        raise UsageError("say who it is for: --worker or --client")
    role = Role.WORKER if worker else Role.CLIENT
    target = out or folder / name
    certs.issue(folder, target, (role, name), datetime.now(UTC), hosts, days, force)
    print(f"{target} is the bundle of {role.value} {name!r}, for {days} days")


def show_certs(folder: Path, json: bool) -> None:
    now = datetime.now(UTC)
    facts = bundle.show(folder, now)
    if json:
        print(jsonlib.dumps([_as_row(each, now) for each in facts], indent=2))
    else:
        for each in facts:
            ends = each.ends.strftime("%Y-%m-%d %H:%M UTC")
            print(f"{each.file}: {each.party}, ends {ends}, {_days(each, now)} days left: {each.trouble or 'ok'}")
            if each.hosts:
                print(f"    hosts {' '.join(each.hosts)}")
    if any(each.trouble for each in facts):
        sys.exit(1)


def init_tokens(folder: Path, rotate: bool, force: bool) -> None:
    if rotate and force:
        raise UsageError("--rotate keeps the former key, --force does not: say one of them")
    tokens.create_keys(folder, rotate, force)
    print(f"{folder / tokens.PUBLIC} goes into the bundle of each worker; {tokens.PRIVATE} is a secret and stays there")


def create_token(
    ca: Path, datasets: list[str], verbs: list[str], ttl: str, client: str | None, out: Path | None, force: bool
) -> None:
    if out is not None:
        refuse_to_replace([out], force)
    parsed = [tokens.parse_verb(verb) for verb in verbs]
    names = [name.removeprefix("dataset://").removeprefix(f"{DEFAULT_NAMESPACE}/") for name in datasets]
    made = tokens.create_token(ca, names, parsed, time.time(), parse_duration(ttl), client)
    if out is None:
        print(made)
    else:
        write_secret(out, made + "\n")


def _as_row(facts: bundle.Facts, now: datetime) -> dict[str, Any]:
    dates = {"starts": facts.starts.isoformat(), "ends": facts.ends.isoformat(), "days_left": _days(facts, now)}
    return vars(facts) | dates


def _days(facts: bundle.Facts, now: datetime) -> int:
    return (facts.ends - now).days
