"""A local OpenAI-compatible endpoint that misbehaves on demand."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.labels import Source
from crops.outputs import write_manifest
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS
from crops.text import query_id

GOOD = {"ocr_cover": "Grow it on a bright sill",
        "photo_caption": "I turn the pot once a month and wipe dust from each leaf with a damp cloth.",
        "click_query": "fig tree indoors|leaf care routine",
        "keyword": "houseplants watering sunlight"}  # fmt: skip


class Text(str):
    """What the model writes, word for word."""


class FakeEndpoint:
    """Answers each query with the behaviours of its script, the last one again and again.

    A behaviour is "ok", "html", "empty", "truncated", "not_json", "deep", "wrong_fields", "refusal",
    "slow", "no_usage", "error_200", a status code, a dict of answer fields laid over GOOD, a dict of a whole
    `message` (and its `finish`), or a Text to answer with. What no script names does as `otherwise` says.
    """

    def __init__(self):
        self.scripts = {}
        self.otherwise = ["ok"]
        self.knows_formats = True
        self.message = "no"
        self.calls = Counter()
        self.bodies = []
        self.flying = self.most_flying = 0
        self.lock = threading.Lock()
        self.delay_s = 0.0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet: a second one would wait 40 ms for the first to be acknowledged

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
        script = self.scripts.get(query, self.otherwise)
        behaviour = script[min(number, len(script) - 1)]
        if "response_format" in body and not self.knows_formats:
            behaviour = 400
        try:
            self.act(handler, behaviour)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                self.flying -= 1

    def act(self, handler, behaviour):
        if isinstance(behaviour, int):
            body = json.dumps({"error": {"message": self.message}})
            return self.send(handler, behaviour, body.encode())
        if behaviour == "error_200":
            return self.send(
                handler, 200, b'{"error": {"message": "the provider is overloaded", "code": 503}}'
            )
        if behaviour == "html":
            return self.send(handler, 200, b"<html>Bad gateway</html>", "text/html")
        if behaviour == "slow":
            time.sleep(0.5)
        answer = json.dumps(GOOD | (behaviour if isinstance(behaviour, dict) else {}))
        texts = {
            "empty": "",
            "truncated": answer[:60],
            "not_json": "Sure! Here is your video.",
            "deep": "[" * 100_000,
            "wrong_fields": json.dumps({"title": "x"}),
        }
        named = behaviour if isinstance(behaviour, str) else ""
        text = str(behaviour) if isinstance(behaviour, Text) else texts.get(named, answer)
        finish = "length" if behaviour == "truncated" else "stop"
        refusal = "I cannot help with that" if behaviour == "refusal" else None
        message = {"role": "assistant", "content": text, "refusal": refusal}
        if isinstance(behaviour, dict) and "message" in behaviour:
            message |= behaviour["message"]
            finish = behaviour.get("finish", "stop")
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
        if status in (301, 302, 307, 308):
            handler.send_header("Location", "http://elsewhere.example/v1")
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


CLICKED, EXPOSED, FEED = int(Source.CLICKED), int(Source.EXPOSED), int(Source.FEED)
TITLES = {1: "A fig in my kitchen", 2: "Big cat at the river", 3: "Fig pot day",
          4: "Order at www.evil.example"}  # fmt: skip


def write(folder, table, rows):
    full = [dict.fromkeys(table.names()) | row for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=table.arrow()), folder / f"{table.name}.parquet")


def sample(query, item, sources):
    return {"query_id": query_id(query), "item_id": item, "label": 4, "sources": sources, "weight": 1.0}


def click(query, item, search):
    return {
        "query_id": query_id(query),
        "item_id": item,
        "source": CLICKED,
        "search_id": search,
        "day": "2024-05-01",
    }


@pytest.fixture
def mined(tmp_path):
    """Ficus: item 4 (an advert) has 3 clicks, 3 has 2, 1 has 1; jaguar: item 2; bat: feed; owl: few users."""
    folder = tmp_path / "mined"
    folder.mkdir()
    users = {"ficus": (50, 30), "jaguar": (80, 40), "bat": (90, 60), "owl": (99, 5)}
    queries = [
        {"query_id": query_id(query), "query": query, "searches": searches, "users": count}
        for query, (searches, count) in users.items()
    ]
    write(folder, QUERIES, queries)
    write(
        folder, ITEMS, [{"item_id": item, "ocr_cover": title} for item, title in TITLES.items() if item > 0]
    )
    samples = [
        sample("ficus", 1, CLICKED | EXPOSED),
        sample("ficus", 3, CLICKED | FEED),
        sample("ficus", 4, CLICKED),
        sample("jaguar", 2, CLICKED),
        sample("jaguar", -5, CLICKED),
        sample("bat", 1, FEED | EXPOSED),
        sample("owl", 1, CLICKED),
    ]
    write(folder, SAMPLES, samples)
    evidence = [click("ficus", 3, 1), click("ficus", 3, 2), click("ficus", 1, 3), click("jaguar", 2, 7)]
    evidence += [click("ficus", 4, search) for search in (4, 5, 6)]
    evidence += [{**click("ficus", 1, search), "source": FEED} for search in range(10, 19)]
    evidence += [{**click("bat", 1, 20), "source": FEED}, click("owl", 1, 21)]
    write(folder, EVIDENCE, evidence)
    write(folder, SYNTHETIC_ITEMS, [{"item_id": -5, "ocr_cover": "Made up"}])
    (folder / "report.json").write_text(json.dumps({"days": [], "pairs": []}))
    write_manifest(folder, "mine", config={"engine": {}}, seconds={})
    return folder
