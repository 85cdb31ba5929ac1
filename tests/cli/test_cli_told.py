"""What few people did leaves the process in no reply, page, report, sheet, export or line of log.

Who stands behind what is counted here in Python, from the rows of the logs and of the evidence, without the
code under test; queries are words that stand nowhere else, so that each mention is found in what is said.
"""

import csv
import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from crops.cli.app import app
from crops.config import EngineConfig, IndexConfig, ServingConfig
from crops.engine import mine
from crops.engine.daily import Job, mine_daily
from crops.engine.evidence import explain
from crops.errors import CropsError
from crops.labels import Source
from crops.logs import open_logs
from crops.report.side_by_side import Reasons, choose_queries
from crops.retrieval import Model, build_index
from crops.serving import service as service_module
from crops.serving.app import make_app
from crops.text import PLAIN, query_id

K = 4
USERS, ITEMS = 40, 24
COMMON = [f"zq{letter}" for letter in "abcdefgh"]
EAGER = "zrown"
RARE = [f"zr{number:02d}" for number in range(30)]
WORD = re.compile(r"\bz[qr]\w+\b")
NOON, MINUTE, DAY = 1_767_614_400_000_000, 60_000_000, 86_400_000_000
P0, P1, P2, P3 = Source.CLICKED, Source.REFORMULATION, Source.FEED, Source.KNOWLEDGE
NAMES = {P0: "clicked", P1: "P1", P2: "P2", P3: "P3"}


def random_rows():
    """Return impressions and feed events of two days: sessions of a query and its rewording.

    Most sessions follow fashions (a query, its rewording and the item that is clicked under it), so that some
    trails are many people's; the others are their own, in common and in rare words. User 99 does one thing
    again and again: as often as k people, and alone.
    """
    rng = np.random.default_rng(5)
    fashions = [(COMMON[n % 8], COMMON[(n + 3) % 8], n + 1) for n in range(10)]
    impressions, feed = [], []
    for session in range(260):
        user, day = int(rng.integers(1, USERS + 1)), int(rng.integers(2))
        first, later, item = fashions[int(rng.integers(len(fashions)))]
        if rng.random() < 0.4:
            first, later = rng.choice([*COMMON, *RARE], 2, replace=False).tolist()
            item = int(rng.integers(1, ITEMS + 1))
        if session % 13 == 0:
            user, first, later, item = 99, *((EAGER, COMMON[0]) if session % 2 else (COMMON[1], EAGER)), ITEMS
        at = NOON + day * DAY + session * 3 * MINUTE % (8 * 60 * MINUTE)
        for step, (query, shown) in enumerate([(first, int(rng.integers(1, 5))), (later, item)]):
            impressions.append(
                {
                    "user_id": user,
                    "search_id": 2 * session + step,
                    "query": query.upper() if session % 3 else query,
                    "searched_at": at + step * MINUTE // 2,
                    "item_id": shown,
                    "clicked": step == 1 or session % 2 == 0,
                }
            )
        if session % 2:
            feed.append(
                {"user_id": user, "item_id": int(rng.integers(1, 4)), "watched_at": at + 5, "liked": True}
            )
    return impressions, feed


class Words:
    """A vector for each word."""

    def encode(self, texts, **_):
        vectors = [sum(map(self._of, text.split()), np.full(16, 1e-3, np.float32)) for text in texts]
        return np.stack([vector / np.linalg.norm(vector) for vector in vectors])

    def _of(self, word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).standard_normal(16).astype(np.float32) + 0.5


MODEL = Model("words", Words(), PLAIN, "hash-of-words")


def count(folder, mined, impressions):
    """Return who searched each query, and the people and events of each trail, from rows alone."""
    day = {row["search_id"]: row["searched_at"] // DAY for row in impressions}
    user = {row["search_id"]: row["user_id"] for row in impressions}
    people, by_day, searches = defaultdict(set), defaultdict(set), defaultdict(set)
    for row in impressions:
        query = row["query"].lower()
        people[query].add(row["user_id"])
        by_day[query, day[row["search_id"]]].add(row["user_id"])
        searches[query].add(row["search_id"])
    text = {query_id(query): query for query in people}
    trails, events = defaultdict(set), Counter()
    for row in pq.read_table(mined / "evidence.parquet").to_pylist():
        key = (text[row["query_id"]], row["item_id"], Source(row["source"]), text.get(row["via_query_id"]))
        if row["search_id"] is not None:
            trails[key].add(user[row["search_id"]])
        events[key] += 1
    daily = mined.name == "window"
    known = {
        query: max(len(by_day[query, one]) for one in set(day.values())) if daily else len(users)
        for query, users in people.items()
    }
    told = {key: (events[key], len(users)) for key, users in trails.items() if len(users) >= K}
    return SimpleNamespace(
        folder=folder,
        mined=mined,
        users={query: n for query, n in known.items() if n >= K},
        searches={query: len(found) for query, found in searches.items()},
        trails=trails,
        events=events,
        told=told,
        people=people,
    )


@pytest.fixture(scope="module", params=["once", "daily"])
def world(request, tmp_path_factory, write_logs):
    folder = tmp_path_factory.mktemp("told")
    impressions, feed = random_rows()
    items = [{"item_id": item, "ocr_cover": f"title {item}", "category": "c"} for item in range(1, ITEMS + 1)]
    logs = open_logs(write_logs(folder / "logs", items, impressions, feed))
    generated = folder / "generated.jsonl"
    generated.write_text(json.dumps({"query": COMMON[0], "ocr_cover": "written text"}) + "\n")
    config = EngineConfig(k=K, knowledge={"min_users": 1})
    if request.param == "daily":
        mine_daily(logs, folder / "mined", Job(config, None, None, generated))
        mined = folder / "mined" / "window"
    else:
        mine(logs, folder / "mined", config, relevance=None, similarity=None, generated=generated)
        mined = folder / "mined"
    build_index(f"faiss:{folder / 'index'}", MODEL, folder / "logs", IndexConfig())
    return count(folder, mined, impressions)


@pytest.fixture
def client(world, monkeypatch):
    monkeypatch.setattr(service_module, "load_model", lambda name: MODEL)
    index = (str(world.folder / "index"), "index")
    service = service_module.open_service(
        {"index": index}, ServingConfig(max_wait_s=30, timeout_s=60), world.folder / "mined"
    )
    with TestClient(make_app(service), raise_server_exceptions=False) as one:
        yield one


def run(world, *arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "400"})
    return done, done.output + str(done.exception or "")


def words(text):
    return set(WORD.findall(text.lower()))


def expected(world, query, item=None):
    """Return what is told of a query's trails, (item, source, via, events, people), None for few people."""
    found = set()
    for own, one, source, via in world.trails:
        if own == query and item in (None, one):
            mine = {key: told for key, told in world.told.items() if key[:3] == (own, one, source)}
            if (own, one, source, via) in mine:
                found.add((one, source, via, *mine[own, one, source, via]))
            elif not mine:
                found.add((one, source, None, None, None))
    return found


def vias(world, query):
    return {via for own, _, _, via in world.told if own == query and via}


def test_the_world_has_what_must_be_told_and_what_must_not(world):
    assert len(world.users) >= 8
    assert set(world.people) - set(world.users)
    rewordings = {key: len(users) for key, users in world.trails.items() if key[2] is P1}
    assert sum(n >= K for n in rewordings.values()) >= 3
    few = [key for key, n in rewordings.items() if n < K]
    # Named where only the later query has to be popular.
    assert sum(key[0] in world.users and key[3] in world.users for key in few) >= 10
    assert any(key[2] is P2 for key in world.told)
    assert world.searches[EAGER] > K > len(world.people[EAGER])
    assert any(world.events[key] > K > len(users) for key, users in world.trails.items() if key[2] is P1)


def test_explain_tells_of_k_people_or_of_nobody(world):
    for query in world.people:
        done, said = run(world, "explain", query, world.folder / "mined")
        if query not in world.users:
            assert done.exit_code != 0
            assert words(said) <= {query} | set(world.users)
            with pytest.raises(CropsError, match=f"no query of at least {K} users"):
                explain(query, world.folder / "mined")
            continue
        found = explain(query, world.folder / "mined")
        assert found.users == world.users[query]
        assert {
            (positive.item_id, trail.source, trail.via[0] if trail.via else None, trail.events, trail.users)
            for positive in found.positives
            for trail in positive.trails
            if trail.source is not P3
        } == {one for one in expected(world, query) if one[1] is not P3}
        assert words(said) == {query} | vias(world, query)
        numbers = Counter((int(n), int(m)) for n, m in re.findall(r"(\d+) time\(s\) by (\d+) user", said))
        numbers[found.searches, found.users] -= 1
        assert +numbers == Counter(told[3:] for told in expected(world, query) if told[3] is not None)


def test_replies_tell_of_k_people_or_of_nobody(world, client, caplog):
    caplog.set_level(logging.INFO, "crops.serving")
    for query in world.people:
        asked = {"query": query, "item_ids": [str(item) for item in range(1, ITEMS + 1)]}
        reply = client.post("/explain", json=asked).json()
        assert reply["known"] is (query in world.users)
        assert words(json.dumps(reply)) <= set(world.users)
        for near in reply["queries"]:
            text = near["query"]
            assert (near["users"], near["searches"]) == (world.users[text], world.searches[text])
            for total in near["positives"]:
                assert_total(world, text, total)
        for pair in (pair for item in reply["items"] for pair in item["pairs"]):
            told = {
                (one["source"], one["via"][0] if one["via"] else None, one["events"], one["users"])
                for one in pair["evidence"]
                if one["source"] != "P3"
            }
            want = expected(world, pair["query"], int(pair["item_id"]))
            assert told == {(NAMES[source], *rest) for _, source, *rest in want if source is not P3}
    metrics = client.get("/metrics").text
    assert not words(metrics + " ".join(record.getMessage() + str(vars(record)) for record in caplog.records))


def assert_total(world, query, total):
    if total["source"] == "P3":
        return
    found = (total["items"], total["events"], total["users"])
    own = [key for key in world.told if key[0] == query and NAMES[key[2]] == total["source"]]
    people = set().union(*(world.trails[key] for key in own))
    events = sum(world.told[key][0] for key in own)
    assert found == ((len({key[1] for key in own}), events, len(people)) if own else (None, None, None))


def test_pages_tell_of_k_people_or_of_nobody(world, client):
    assert words(client.get("/").text) <= set(world.users)
    for query in world.people:
        page = client.get("/", params={"q": query, "k": 20}).text
        assert words(page) <= {query} | set(world.users)
        assert all(int(n) >= K for n in re.findall(r"by (\d+) p", page))
        group = client.get("/group", params={"q": query})
        if query not in world.users:
            assert group.status_code == 404
            assert words(group.text) == {query}
            continue
        told = [one for one in expected(world, query) if one[3] is not None]
        assert words(group.text) == {query} | vias(world, query)
        found = re.findall(r"(\d+) times? by (\d+) people", group.text)
        assert Counter(found) == Counter((str(events), str(users)) for *_, events, users in told) | Counter(
            [(str(world.searches[query]), str(world.users[query]))]
        )


def test_sheets_and_exports_hold_queries_of_k_people(world, tmp_path):
    sheet = tmp_path / "sheet.csv"
    assert run(world, "judge", "sheet", world.folder / "mined", sheet, "--each", 1000)[0].exit_code == 0
    with sheet.open(encoding="utf-8-sig") as file:
        shown = {row["query"]: int(row["users"]) for row in csv.DictReader(file)}
    assert shown
    assert shown.items() <= world.users.items()
    done, said = run(world, "export", world.folder / "mined", tmp_path / "x", "--format", "jsonl")
    assert done.exit_code == 0
    lines = (tmp_path / "x" / "samples.jsonl").read_text()
    assert words(lines) == set(world.users)
    assert not words(said)


def test_reports_name_no_query(world, tmp_path):
    done, said = run(world, "engine-report", world.folder / "mined", "--out", tmp_path / "report")
    assert done.exit_code == 0, said
    for path in (tmp_path / "report").iterdir():
        assert not words(path.read_text())
    assert not words(said)


class Found:
    """Finds one item for every query, and remembers what was asked."""

    def __init__(self, item):
        self.item, self.asked = item, []

    def search(self, queries, k):
        self.asked += queries
        return np.full((len(queries), 1), self.item), np.ones((len(queries), 1))


def test_cases_tell_of_k_people_or_of_nobody(world, tmp_path):
    logs = world.folder / "logs"
    pq.write_table(pa.table({"need_id": [1], "head": ["h"], "sense": ["s"]}), tmp_path / "needs.parquet")
    ids = list(range(1, ITEMS + 1))
    pq.write_table(pa.table({"item_id": ids, "need_id": [1] * ITEMS}), tmp_path / "items.parquet")
    pq.write_table(pa.table({"need_id": [1], "item_id": [1], "grade": [3]}), tmp_path / "grades.parquet")
    searches = list(range(520))
    pq.write_table(pa.table({"search_id": searches, "need_id": [1] * 520}), tmp_path / "searches.parquet")
    old, new = Found(1), Found(2)
    _, cases = choose_queries(logs, tmp_path, "2026-01-06", old, new, K)
    assert cases
    assert all(len(world.people[query]) >= K for query in {case.text for case in cases} | set(old.asked))
    with Reasons(world.folder / "mined", logs, tmp_path, "2026-01-06", K) as evidence:
        for query in world.people:
            for item in ids:
                for line in evidence.lines(query, item):
                    assert_line(world, query, item, line)


def assert_line(world, query, item, line):
    assert words(line) <= set(world.users)
    told = [key for key in world.told if key[1] == item]
    if "positive of" in line:
        (other,) = words(line)
        counts = [world.told[key][0] for key in told if key[0] == other]
        assert not (number := re.search(r"\((\d+)", line)) or 0 < int(number[1]) <= sum(counts)
    else:
        assert words(line) <= {key[3] for key in told if key[0] == query}
        people = {world.told[key][1] for key in told if key[0] == query}
        assert not (number := re.search(r"by (\d+) people", line)) or int(number[1]) in people
