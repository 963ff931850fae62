"""What the tests and the programs that they run both know."""

import hashlib

COUNT = 300

PROGRAM = """
import hashlib, os, sys
ROOT = sys.argv[1]
def content(number):
    return hashlib.sha256(b"%d" % number).digest() * 63
"""
"""Begin of a program: the source's folder, and what a file holds."""


def content(number: int) -> bytes:
    """What a file holds."""
    return hashlib.sha256(b"%d" % number).digest() * 63
