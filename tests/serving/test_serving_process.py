"""The server as a process: sockets, slow senders, signals."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from crops.config import ServingConfig
from crops.errors import CropsError
from crops.serving.server import listen

SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from served_world import fake_load_model, open_world
from crops.serving import opening, server
from crops.serving.searcher import Searcher
opening.load_model = fake_load_model
desk = open_world(Path(sys.argv[2]), port=0, read_timeout_s=0.5, reload_s=0.1)
answer = Searcher.answer
def slow(self, jobs):
    time.sleep(1.0 if jobs[0].query == "slowly" else 0)
    return answer(self, jobs)
Searcher.answer = slow
server.run(desk)
"""


@pytest.fixture(scope="module")
def process(world):
    """The port of a running server, and its process."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(world)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = json.loads(running.stdout.readline())
        assert said["event"] == "listening"
        yield said["port"], running
    finally:
        running.kill()
        running.wait()


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


def test_a_body_that_does_not_come_is_answered_with_408(process):
    port, _ = process
    with connected(port) as slow:
        slow.sendall(b"POST /search HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


def test_a_query_of_100_kb_gets_its_answer_over_the_wire(process):
    with pytest.raises(urllib.error.HTTPError) as refused:
        search(process[0], "a" * 100_000)
    assert refused.value.code == 413
    assert "65,536" in json.load(refused.value)["detail"]


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
    """The last test of the process: SIGTERM arrives while a search takes a second."""
    port, running = process
    found = []
    thread = threading.Thread(target=lambda: found.append(search(port, "slowly")))
    thread.start()
    time.sleep(0.4)
    running.send_signal(signal.SIGTERM)
    thread.join(10)
    assert found[0]["hits"]
    assert running.wait(10) == 0
    lines = [json.loads(line) for line in running.stdout.read().splitlines()]
    assert lines[-1]["event"] == "stopped"
    assert all("time" in line and "level" in line for line in lines)
    assert "jaguar" not in json.dumps(lines)
