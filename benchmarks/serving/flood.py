"""An open-loop flood from a process of its own, on bare sockets: the client must not be what is late.

Prints one line of JSON: status counts, and for answers (200) and refusals (503) the milliseconds from the
first byte sent to the last byte received; `late` is how long after it was due a request left.
    python benchmarks/serving/flood.py PORT RATE SECONDS [--keep] [--path /explain] [--bodies FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence


class Sent:
    """A connection with its request under way."""

    def __init__(self, connection: socket.socket, data: bytes) -> None:
        self.connection, self.data, self.answer, self.begun = connection, data, b"", 0.0


def request(path: str, body: bytes | None, *, keep: bool) -> bytes:
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nhost: a\r\n"
    head += "" if keep else "connection: close\r\n"
    if body is not None:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + (body or b"")


def flood(
    port: int, rate: float, seconds: float, requests: Sequence[bytes], *, keep: bool
) -> dict[str, object]:
    """Send requests at Poisson times, wait for the answers, and return what became of them."""
    rng, poll = random.Random(0), select.epoll()
    under_way: dict[int, Sent] = {}
    idle: list[socket.socket] = []
    statuses: Counter[str] = Counter()
    took: dict[str, list[float]] = {"200": [], "503": []}
    late: list[float] = []
    start = due = time.perf_counter()
    while due - start < seconds or under_way:
        now = time.perf_counter()
        while due - start < seconds and due <= now:
            late.append(now - due)
            due += rng.expovariate(rate)
            sent = Sent(idle.pop() if idle else _connect(port), rng.choice(requests))
            under_way[sent.connection.fileno()] = sent
            poll.register(sent.connection, select.EPOLLOUT)
        wait = max(0.0, due - time.perf_counter()) if due - start < seconds else 1.0
        for number, _ in poll.poll(min(wait, 1.0)):
            sent = under_way[number]
            status = _step(sent, poll)
            if status is None:
                continue
            poll.unregister(number)
            del under_way[number]
            statuses[status] += 1
            if status in took:
                took[status].append(time.perf_counter() - sent.begun)
            if keep and status.isdigit() and b"connection: close" not in sent.answer.lower():
                idle.append(sent.connection)
            else:
                sent.connection.close()
        if now - start > seconds + 60:
            statuses["no answer in 60 s"] += len(under_way)
            break
    return {
        "statuses": dict(statuses),
        "answers": spread(took["200"]),
        "refusals": spread(took["503"]),
        "late": spread(late),
    }


def _connect(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex(("127.0.0.1", port))
    return connection


def _step(sent: Sent, poll: select.epoll) -> str | None:
    """Send or receive; return the status once the whole answer is there."""
    try:
        if sent.data:
            sent.begun = sent.begun or time.perf_counter()
            sent.data = sent.data[sent.connection.send(sent.data) :]
            if not sent.data:
                poll.modify(sent.connection, select.EPOLLIN)
            return None
        part = sent.connection.recv(1 << 20)
    except BlockingIOError:
        return None
    except OSError as error:
        return type(error).__name__
    sent.answer += part
    head, end, body = sent.answer.partition(b"\r\n\r\n")
    if end:
        length = next(
            (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None
        )
        if length is None or len(body) >= int(length.partition(b":")[2]):
            return head[9:12].decode()
    return None if part else "closed"


def spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [float("nan")]
    shares = {"p50": 0.5, "p99": 0.99, "longest": 1.0}
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
        for name, share in shares.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument(
        "--keep", action="store_true", help="keep connections alive; else one for each request"
    )
    parser.add_argument("--path", default="/search")
    parser.add_argument("--bodies", help="file of bodies, one a line; GET without")
    args = parser.parse_args()
    bodies = open(args.bodies, "rb").read().splitlines() if args.bodies else [None]
    requests = [request(args.path, body, keep=args.keep) for body in bodies]
    json.dump(flood(args.port, args.rate, args.seconds, requests, keep=args.keep), sys.stdout)


if __name__ == "__main__":
    main()
