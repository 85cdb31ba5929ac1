"""The server as a process: sockets, slow senders, signals."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest

from crops.config import ServingConfig
from crops.errors import CropsError
from crops.serving.app import arrival, listen

SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from served_world import fake_load_model, open_world
from crops.serving import app as server, service as service_module
from crops.serving.searcher import Searcher
service_module.load_model = fake_load_model
limits = {"max_connections": 20, "max_requests": 10, "max_wait_s": 0.5, "read_timeout_s": 0.5, "grace_s": 1}
service = open_world(Path(sys.argv[2]), port=0, reload_s=0.1, **limits)
answer = Searcher.answer
def slow(self, jobs):
    time.sleep(0.8 if jobs[0].query == "slowly" else 0)
    return answer(self, jobs)
Searcher.answer = slow
server.run(service)
"""


@pytest.fixture(scope="module")
def process(world):
    """The port of a running server, and its process."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(world)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = json.loads(running.stdout.readline())
        assert said["event"] == "listening"
        running.lines = []  # a pipe that nobody reads would hold the server up
        threading.Thread(target=lambda: running.lines.extend(running.stdout), daemon=True).start()
        yield said["port"], running
    finally:
        running.kill()
        running.wait()


STYLE = b"GET /static/explorer.css HTTP/1.1\r\nhost: a\r\n\r\n"


def deaf_to(port):
    """Return a connection that asks for more than sockets hold, and reads nothing."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.settimeout(5)
    deaf.connect(("127.0.0.1", port))
    deaf.sendall(STYLE * 1000)
    return deaf


def search(port, query):
    body = json.dumps({"query": query}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/search", body, headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def test_headers_that_do_not_come_end_the_connection(process):
    port, _ = process
    with connected(port) as silent, connected(port) as dribbling:
        dribbling.sendall(b"POST /search HTTP/1.1\r\nhost: ")
        assert search(port, "jaguar")["hits"]
        start = time.monotonic()
        assert silent.recv(100) == b""
        assert dribbling.recv(100) == b""
        assert time.monotonic() - start < 4


def answered(connection):
    """Return all that a server sends until it closes."""
    said = b""
    while part := connection.recv(65_536):
        said += part
    return said


GET = b"GET /healthz HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x-a: " + b"a" * 70_000,  # and no end
        GET + b"x-a: b\r\n" * 7000,
        GET + b"a" * 70_000,
        GET + b"x-a: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /?q=" + b"a" * 70_000,
        b"GET /?q=" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_headers_and_addresses_of_more_than_32_kb_are_refused(process, head):
    port, _ = process
    with connected(port) as large:
        large.sendall(head)
        said = answered(large)
    assert b" 431 " in said
    assert b"32,768" in said
    assert search(port, "jaguar")["hits"]


def test_trailers_without_an_end_are_cut_off(process):
    port, running = process
    with connected(port) as large:
        large.sendall(b"POST /search HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-a: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1000:
                large.sendall(b"a" * 65_536)
                sent += 1
        assert sent < 1000  # 64 MB; sockets hold some


def test_connections_beyond_the_limit_are_told_to_come_back(process):
    port, _ = process
    idle = [connected(port) for _ in range(20)]
    with connected(port) as late:
        late.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        said = answered(late).lower()
    for one in idle:
        one.close()
    assert b" 503 " in said
    assert b"retry-after: 1" in said
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            assert search(port, "jaguar")["hits"]
            break
        except urllib.error.HTTPError:
            time.sleep(0.1)


def test_the_arrival_of_a_request_is_known_before_it_is_accepted():
    """A connection that lies in the kernel's queue for 0.3 s: the socket knows since when."""

    class Transport:
        def get_extra_info(self, name):
            return accepted

    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            sent = time.monotonic()
            time.sleep(0.3)
            accepted, _ = listening.accept()
            with accepted:
                assert arrival(Transport()) == pytest.approx(sent, abs=0.1)


def test_who_is_slow_to_send_holds_no_place_and_no_connection(process):
    """Eighteen send a letter now and then, ten may be answered at once: a search is, and all are closed."""
    port, _ = process
    slow = [connected(port) for _ in range(18)]
    for one in slow:
        one.sendall(b"POST /search HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
    assert search(port, "jaguar")["hits"]
    begun, open_ = time.monotonic(), set(slow)
    while open_ and time.monotonic() < begun + 5:
        for one in list(open_):
            try:
                one.sendall(b"a")
            except OSError:
                open_.discard(one)
        time.sleep(0.1)
    assert not open_
    for one in slow:
        one.close()


def test_what_is_no_http_is_refused(process):
    port, _ = process
    with connected(port) as strange:
        strange.sendall(b"\x16\x03\x01\x00garbage\r\n\r\n")
        assert b" 400 " in strange.recv(1000)
    assert search(port, "jaguar")["hits"]


def test_a_port_that_is_taken_is_a_refusal_to_start(process):
    port, _ = process
    with pytest.raises(CropsError, match="--port"):
        listen(ServingConfig(port=port))
    with pytest.raises(CropsError, match="cannot listen on 192.0.2.1"):
        listen(ServingConfig(host="192.0.2.1", port=0))


def test_a_stopped_server_answers_what_is_under_way_and_ends_well(process):
    """The last test of the process: SIGTERM arrives while a search takes 0.8 s, and others never read."""
    port, running = process
    found = []
    thread = threading.Thread(target=lambda: found.append(search(port, "slowly")))
    thread.start()
    time.sleep(0.3)
    deaf = [deaf_to(port) for _ in range(2)]
    time.sleep(0.1)
    start = time.time()
    running.send_signal(signal.SIGTERM)
    thread.join(10)
    assert found[0]["hits"]
    assert running.wait(20) == 0
    lines = [json.loads(line) for line in running.lines]
    assert lines[-1]["event"] == "stopped"
    stopped = datetime.fromisoformat(lines[-1]["time"]).timestamp()
    assert stopped - start < 3  # grace_s is 1; what Python takes to end is not counted
    assert all("time" in line and "level" in line for line in lines)
    assert "jaguar" not in json.dumps(lines)
    for one in deaf:
        one.close()
