"""A local OpenAI-compatible endpoint that misbehaves on demand."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

GOOD = {
    "ocr_cover": "Grow it on a bright sill",
    "photo_caption": "I turn the pot once a month and wipe dust from each leaf with a damp cloth.",
    "click_query": "fig tree indoors|leaf care routine",
    "keyword": "houseplants watering sunlight",
}


class Text(str):
    """What the model writes, word for word."""


class FakeEndpoint:
    """Answers each query with the behaviours of its script, the last one again and again.

    A behaviour is "ok", "html", "empty", "truncated", "not_json", "deep", "wrong_fields", "refusal",
    "slow", "no_usage", a status code, a dict of answer fields laid over GOOD, or a Text to answer with.
    """

    def __init__(self):
        self.scripts = {}
        self.calls = Counter()
        self.bodies = []
        self.flying = self.most_flying = 0
        self.lock = threading.Lock()
        self.delay_s = 0.0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                endpoint.serve(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def serve(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        query = json.loads(body["messages"][-1]["content"])["query"]
        with self.lock:
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
            number = self.calls[query]
            self.calls[query] += 1
            self.bodies.append(body)
        time.sleep(self.delay_s)
        script = self.scripts.get(query, ["ok"])
        try:
            self.act(handler, script[min(number, len(script) - 1)])
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                self.flying -= 1

    def act(self, handler, behaviour):
        if isinstance(behaviour, int):
            return self.send(handler, behaviour, b'{"error": {"message": "no"}}')
        if behaviour == "html":
            return self.send(handler, 200, b"<html>Bad gateway</html>", "text/html")
        if behaviour == "slow":
            time.sleep(0.5)
        answer = GOOD | (behaviour if isinstance(behaviour, dict) else {})
        text, finish, refusal = json.dumps(answer), "stop", None
        if behaviour == "empty":
            text = ""
        elif behaviour == "truncated":
            text, finish = text[:60], "length"
        elif behaviour == "not_json":
            text = "Sure! Here is your video."
        elif behaviour == "deep":
            text = "[" * 100_000
        elif behaviour == "wrong_fields":
            text = json.dumps({"title": "x"})
        elif isinstance(behaviour, Text):
            text = str(behaviour)
        elif behaviour == "refusal":
            refusal = "I cannot help with that"
        message = {"role": "assistant", "content": text, "refusal": refusal}
        completion = {
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {} if behaviour == "no_usage" else {"prompt_tokens": 10, "completion_tokens": 50},
        }
        return self.send(handler, 200, json.dumps(completion).encode())

    def send(self, handler, status, payload, kind="application/json"):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(payload)))
        handler.send_header("retry-after-ms", "1")
        handler.end_headers()
        handler.wfile.write(payload)


@pytest.fixture
def text():
    return Text


@pytest.fixture
def fake():
    endpoint = FakeEndpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()
