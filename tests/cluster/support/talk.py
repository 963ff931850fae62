"""A program that sends and receives datagrams and bytes of a stream, for tests of networks. Standard library only.

Answers each line of JSON with one:

* ``["send", ADDRESS, TEXT]``: sends a datagram; null.
* ``["received"]``: [sender, text] of the datagrams that came since it was asked last.
* ``["connect", ADDRESS]``: whether a connection could be made within 0.3 s.
* ``["write", TEXT]``, ``["read"]``: to the connection made last, and what came over those that others made.
"""

import json
import socket
import sys
from contextlib import suppress

_PORT = 5000
_CONNECT_S = 0.3


def main() -> None:
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", _PORT))
    datagrams.setblocking(False)
    listener = socket.create_server(("0.0.0.0", _PORT))
    listener.setblocking(False)
    out = None
    ins: list[socket.socket] = []
    for line in sys.stdin:
        word, *args = json.loads(line)
        answer: object = None
        if word == "send":
            datagrams.sendto(args[1].encode(), (args[0], _PORT))
        elif word == "received":
            answer = []
            with suppress(BlockingIOError):
                while True:
                    data, sender = datagrams.recvfrom(1500)
                    answer.append([sender[0], data.decode()])
        elif word == "connect":
            try:
                out = socket.create_connection((args[0], _PORT), _CONNECT_S)
                answer = True
            except OSError:
                answer = False
        elif word == "write":
            assert out is not None
            out.sendall(args[0].encode())
        elif word == "read":
            with suppress(BlockingIOError):
                while True:
                    ins.append(listener.accept()[0])
                    ins[-1].setblocking(False)
            answer = ""
            for one in ins:
                with suppress(BlockingIOError):
                    answer += one.recv(65536).decode()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
