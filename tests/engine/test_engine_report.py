"""What the engine's report says, counted by hand."""

import json
import re
import shutil

import pytest
from days import random_logs
from handmade import FakeScorer, clicked, run, scores, shown, watched
from typer.testing import CliRunner

from crops.cli.app import app
from crops.engine.report import insights
from crops.errors import CropsError

SEARCHES = [
    shown(1, 1, "jaguar", 0, 1),
    shown(1, 1, "jaguar", 0, 2, "unexposed"),
    shown(1, 1, "jaguar", 0, 3, "filtered"),
    *(clicked(2, 1, "big cat", 40, item) for item in (1, 2, 3, 4)),
    clicked(3, 2, "jaguar", 500, 5),
    clicked(4, 3, "jaguar", 500, 5),
]
FEED = [watched(3, 5, 510), watched(3, 1, 510), watched(2, 9, 510)]


GENERATED = [{"query": "jaguar", "ocr_cover": "text"}]


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """A mining of them."""
    folder = tmp_path_factory.mktemp("report")
    run(folder, SEARCHES, FEED, generated=GENERATED)
    return folder / "mined"


def with_k(mined, folder, k: int):
    """Return a copy of a mining with another `engine.k`, which changes no sample."""
    config = shutil.copytree(mined, folder / f"k{k}") / "config.toml"
    config.write_text(re.sub(r"(?m)^k = \d+$", f"k = {k}", config.read_text()))
    return config.parent


def test_disagreements_by_hand(mined):
    """P1 gives jaguar 1 (shown), 2 (ranked), 3 (filtered), 4 (unknown); P2 gives it 1, 5, 9."""
    rows = {row["source"]: row for row in insights(mined, owner=True)["disagreements"]}
    stages = ("clicked", "exposed", "unexposed", "filtered", "nothing")
    for source, positives, also, search in (
        ("p0", 5, {"p1": 0, "p2": 1, "p3": 0, "p4": 0}, (5, 0, 0, 0, 0)),
        ("p1", 4, {"p0": 0, "p2": 1, "p3": 0, "p4": 0}, (0, 1, 1, 1, 1)),
        ("p2", 3, {"p0": 1, "p1": 1, "p3": 0, "p4": 0}, (1, 1, 0, 0, 1)),
        ("p3", 1, {"p0": 0, "p1": 0, "p2": 0, "p4": 0}, (0, 0, 0, 0, 1)),
        ("p4", 0, {"p0": 0, "p1": 0, "p2": 0, "p3": 0}, (0, 0, 0, 0, 0)),
    ):
        where = dict(zip(stages, search, strict=True))
        assert rows[source] == {"source": source, "positives": positives, "also": also, "search": where}


def frequencies(folder, counts: dict[str, int], clicks: set[str], group_by="query"):
    """Mine queries of given frequencies, by another user each; those in `clicks` have a click."""
    rows, search = [], 0
    for query, searches in counts.items():
        for _ in range(searches):
            search += 1
            done = clicked if query in clicks else shown
            rows.append(done(search, search, query, 1000 * search, 1))
    run(folder, rows, group_by=group_by)
    return {
        row["part"]: (row["queries"], row["searches"], row["least"], row["most"], row["shares"])
        for row in insights(folder / "mined", owner=True)["coverage"]
    }


@pytest.mark.parametrize("group_by", ["query", "event"])
def test_head_torso_and_tail_by_hand(tmp_path, group_by):
    """18 searches: before a come 0 of them, before b and c 6, before d 12 and before e and f 16."""
    counts = {"a": 6, "b": 3, "c": 3, "d": 4, "e": 1, "f": 1}
    found = frequencies(tmp_path, counts, {"a", "b", "f"}, group_by)
    none = {"p1": 0.0, "p2": 0.0, "p3": 0.0, "p4": 0.0}
    # a (0 < 6), d (6 is not < 6, < 12), b and c (10 < 12), e and f (16).
    assert found == {
        "head": (1, 6, 6, 6, {"p0": 1.0, **none, "any": 1.0}),
        "torso": (3, 10, 3, 4, {"p0": 0.333333, **none, "any": 0.333333}),
        "tail": (2, 2, 1, 1, {"p0": 0.5, **none, "any": 0.5}),
    }


def test_influence_by_hand(mined, tmp_path):
    """User 1: jaguar 1 to 4 and big cat 1 to 4; user 3: jaguar 5 and 1; user 2: jaguar 5 and 9."""
    found = insights(with_k(mined, tmp_path, 2), owner=True)["influence"]
    assert found == {
        "users": 3,
        "pairs": 10,
        "of_one_user": 8,  # all but jaguar 1 and 5
        "contributions": 12,
        "blocks": [{"first": 1, "last": 2, "contributions": 10, "share": 0.833333}],
        "top": [
            {"user_id": "1", "pairs": 8, "alone": 7, "place": 1},
            {"user_id": "2", "pairs": 2, "alone": 1, "place": 2},
            {"user_id": "3", "pairs": 2, "alone": 0, "place": 3},
        ],
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Users 1 to 3 do all that user 1 does above; user 4 alone searches owl, clicks it and rewords it."""
    rows = [
        *(shown(user, user, "jaguar", 0, 1) for user in (1, 2, 3)),
        *(clicked(10 + user, user, "big cat", 40, 2) for user in (1, 2, 3)),
        clicked(30, 4, "owl", 500, 5),
        clicked(31, 4, "night bird", 540, 6),
    ]
    folder = tmp_path_factory.mktemp("together")
    run(folder, rows, [watched(user, 3, 10) for user in (1, 2, 3)])
    return folder / "mined"


def test_k_in_a_shared_report(together, tmp_path):
    out = with_k(together, tmp_path, 3)
    found = insights(out)
    assert "bots" not in found["input"]
    # jaguar and big cat (head) rest on three users; owl and night bird (torso and tail: one row) on user 4.
    head, tail = found["coverage"]
    assert (head["queries"], head["searches"], head["most"], head["least"]) == (None, None, 3, 3)
    assert head["shares"] == {"p0": 0.5, "p1": 0.5, "p2": 1.0, "p3": 0.0, "p4": 0.0, "any": 1.0}
    assert (tail["queries"], tail["searches"], tail["most"], tail["least"]) == (None, None, None, None)
    assert tail["shares"] == {"p0": None, "p1": None, "p2": 0.0, "p3": 0.0, "p4": 0.0, "any": None}
    # Four users in blocks of three: the total less the block would be what user 4 did.
    assert found["influence"] == {
        "users": 4,
        "pairs": 7,
        "of_one_user": None,
        "contributions": 15,
        "blocks": [],
    }
    assert insights(out, owner=True)["influence"]["blocks"] == [
        {"first": 1, "last": 3, "contributions": 12, "share": 0.8}
    ]


def test_a_share_stands_for_k_users_of_its_source(tmp_path):
    """Of the torso's four users two reworded: the row is told, the share of P1 is not."""
    rows = [clicked(user, user, f"q{user}", 0, 1) for user in (1, 2, 3, 4)]
    rows += [clicked(10 + user, user, f"r{user}", 30, 2) for user in (1, 2)]
    rows += [clicked(20 + user, user, "jaguar", 500, 1) for user in (1, 2, 3)]
    rows += [clicked(30 + user, user, "big cat", 520, 2) for user in (1, 2, 3)]
    run(tmp_path, rows, k=3)
    by_part = {row["part"]: row for row in insights(tmp_path / "mined")["coverage"]}
    torso = by_part["torso"]
    assert (torso["queries"], torso["most"], torso["least"]) == (6, None, None)  # each of one searcher
    assert torso["shares"]["p0"] == 1.0
    assert torso["shares"]["p1"] is None


@pytest.mark.parametrize(("k", "few"), [(20, "searched"), (4, "are behind the positives of p2")])
def test_what_few_did_is_for_the_owner_only(together, tmp_path, k, few):
    out = with_k(together, tmp_path, k)
    with pytest.raises(CropsError, match=f"fewer than k = {k} users {few}: .*--owner"):
        insights(out)
    assert insights(out, owner=True)["sources"]["p2"]["kept"] > 0


def test_what_was_left_out_as_bot_like_is_counted_for_the_owner_only(tmp_path):
    rows = [clicked(user, user, "jaguar", 0, 1) for user in range(1, 4)]
    rows += [clicked(100 + search, 9, "spam", search, 2) for search in range(5)]
    run(tmp_path, rows, k=3, bots={"max_searches_per_day": 4})
    shared, own = insights(tmp_path / "mined"), insights(tmp_path / "mined", owner=True)
    assert own["input"]["bots"]["users"] == 1
    assert any("1 bot-like user" in note for note in own["notes"])
    assert "bots" not in shared["input"]
    assert not any("bot-like" in note for note in shared["notes"])


def test_the_page_and_the_files(tmp_path):
    out = tmp_path / "mined"
    scorers = {"relevance": scores({}, 0.9), "similarity": scores({("jaguar", "big cat"): 0.9})}
    run(tmp_path, SEARCHES, FEED, generated=GENERATED, k=1, **scorers)
    done = CliRunner().invoke(app, ["engine-report", str(out)], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert "…" not in done.output  # heads fit into 80 columns
    for words in ("another source makes positive too", "users 1–1", "head", "P1"):
        assert words in " ".join(done.output.split())
    page = (tmp_path / "mined.report" / "report.html").read_text()
    for words in ("Where the sources disagree", "Which queries have positives", "Whom the positives rest on"):
        assert words in page
    assert page.count("<svg") >= 5
    assert not re.search(r'(src|href)="https?:|<script', page)
    assert "user 1 (" not in page
    written = json.loads((tmp_path / "mined.report" / "report.json").read_text())
    assert written["sources"]["p1"]["candidates"] == 4
    for_owner = CliRunner().invoke(app, ["engine-report", str(out), "--owner"], env={"COLUMNS": "200"})
    assert "user 1 (alone for 7)" in for_owner.output
    run(tmp_path / "corner", [shown(1, 1, "a", 0, 1)], k=1)
    corner = str(tmp_path / "corner" / "mined")
    done = CliRunner().invoke(app, ["engine-report", corner, "--out", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    assert "rest on the behaviour of 0 users" in (tmp_path / "r" / "report.html").read_text()
    del written["pairs"]
    (out / "report.json").write_text(json.dumps(written))
    with pytest.raises(CropsError, match="older version; mine it again"):
        insights(out, owner=True)


def test_sums_of_the_parts(tmp_path):
    """On random logs: every positive of a source has one stage, and users' contributions add up."""
    searches, feed = random_logs(seed=8)
    run(tmp_path, searches, feed, relevance=FakeScorer(lambda left, right: 0.9))
    found = insights(tmp_path / "mined", owner=True)
    kept = {"p0": found["sources"]["search"]["clicked"]["kept"]}
    kept |= {name: found["sources"][name]["kept"] for name in ("p1", "p2", "p3", "p4")}
    for row in found["disagreements"]:
        assert row["positives"] == kept[row["source"]] == sum(row["search"].values())
    rescued = sum(found["rescued"][label] for label in ("1", "2", "3"))
    assert rescued == found["rescued"]["pairs"] > 0
    assert sum(user["pairs"] for user in found["influence"]["top"]) == found["influence"]["contributions"]
    assert sum(row["searches"] for row in found["coverage"]) == found["input"]["searches"]
