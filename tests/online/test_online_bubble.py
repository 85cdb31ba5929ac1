"""The closed loop: what a day learns from, what is measured of it, and that it resumes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from online_hand import SESSIONS, Pick, make_start

from crops.cli.experiment import loop_page, shared_days
from crops.config import RunConfig
from crops.errors import CropsError
from crops.online import bubble
from crops.online.bubble import Loop, SimulatedDays, measure_days, read_days, run_loop
from crops.online.experiment import SOURCES, arm_training
from crops.platform import day_name, simulate_day, write_day, write_items, write_truth
from crops.report import render_page

NOON = 1_767_614_400_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A day before the loop, on disk, and the platform at its end."""
    folder = tmp_path_factory.mktemp("world")
    start = make_start(first_day=1)
    logs = simulate_day(start.platform, 0, SESSIONS, start.deployed)
    write_day(folder / "logs", 0, logs)
    write_items(folder / "logs", start.platform)
    write_truth(folder / "truth", start.platform, [(logs.search_ids, logs.search_needs)])
    return folder, start


@pytest.fixture
def done(monkeypatch):
    """What was mined and trained; the model of a day is a salt made of the arm and of the clicks mined."""
    done = []

    def mine(logs, day, samples, run, generated):
        done.append(("mine", logs.parent.name, day))
        shown = pq.read_table(logs / "search_impressions" / f"day={day}" / "part-0.parquet")
        samples.mkdir(exist_ok=True)
        (samples / "clicks").write_text(str(sum(shown["clicked"].to_pylist())))

    def train(arm, samples, model, training, seed, fields):
        done.append(("train", arm, model.name))
        model.mkdir(parents=True)
        (model / "salt").write_text(arm + (samples / "clicks").read_text())

    def load(model, ids, texts, logs):
        return Pick((model / "salt").read_text(), 2_000)

    for name, step in (("mine_day", mine), ("train_arm", train), ("load_retriever", load)):
        monkeypatch.setattr(bubble, name, step)
    return done


def make_loop(out, world):
    samples = out / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    (samples / "clicks").write_text("first")
    run = RunConfig()
    first = dict.fromkeys(("a", "b"), samples)
    return Loop(out / "arms", world, first, "dense", run, run.training, out / "documents.jsonl")


def files(folder):
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_each_day_learns_from_the_day_before(world, tmp_path, done):
    folder, start = world
    ends = [len(done) for _ in run_loop(make_loop(tmp_path, folder), start, ["a", "b"], 2)]
    first, second = day_name(1), day_name(2)
    assert done == [
        ("train", "a", first),
        ("train", "b", first),
        ("mine", "a", first),
        ("train", "a", second),
        ("mine", "b", first),
        ("train", "b", second),
    ]
    assert ends == [2, 6]
    # only the model in use is kept
    assert [path.name for path in (tmp_path / "arms" / "a" / "models").iterdir()] == [second]


def test_a_killed_loop_ends_as_if_it_never_stopped(world, tmp_path, done, monkeypatch):
    folder, start = world
    list(run_loop(make_loop(tmp_path / "whole", folder), start, ["a", "b"], 3))
    killed, train = make_loop(tmp_path / "killed", folder), bubble.train_arm

    def die(arm, samples, model, *rest):
        if arm == "b" and model.name == day_name(2):
            raise KeyboardInterrupt
        train(arm, samples, model, *rest)

    monkeypatch.setattr(bubble, "train_arm", die)
    with pytest.raises(KeyboardInterrupt):
        list(run_loop(killed, start, ["a", "b"], 3))
    monkeypatch.setattr(bubble, "train_arm", train)
    done.clear()
    list(run_loop(killed, start, ["a", "b"], 3))
    assert ("train", "a", day_name(2)) not in done
    assert files(tmp_path / "killed" / "arms") == files(tmp_path / "whole" / "arms")


def test_equal_arms_stay_equal_and_the_page_shows_all_observables(world, tmp_path, done, monkeypatch):
    folder, start = world
    loop = make_loop(tmp_path, folder)
    monkeypatch.setattr(bubble, "load_retriever", lambda *_: Pick("same", 2_000))
    list(run_loop(loop, start, ["a", "b"], 2))
    measured = {arm: read_days(loop, start, arm) for arm in ("a", "b")}
    assert measured["a"] == measured["b"]
    assert sorted(measured["a"]) == [day_name(1), day_name(2)]
    days = measured["a"]
    assert days[day_name(1)]["catalogue"].value < days[day_name(2)]["catalogue"].value
    page = render_page(loop_page(measured, RunConfig()))
    assert page.count("<figure") == 9
    assert "True recall@100" in page
    json.dumps({day: row["top"].value for day, row in days.items()})


def test_true_recall_by_hand(world, tmp_path, done, monkeypatch):
    folder, start = world
    loop = make_loop(tmp_path, folder)
    grades = pq.read_table(folder / "truth" / "grades.parquet").to_pandas()
    grades = grades[grades.grade >= 2]
    live = np.flatnonzero(start.platform.world.corpus.uploaded_day <= 1) + 1
    grades = grades[grades.item_id.isin(live)]

    class Fixed:
        """Finds the same hundred items for everything."""

        found = np.arange(1, 101)

        def search(self, queries, k):
            return np.tile(self.found[:k], (len(queries), 1)), np.zeros((len(queries), k), np.float32)

    monkeypatch.setattr(bubble, "load_retriever", lambda *_: Fixed())
    list(run_loop(loop, start, ["a"], 1))
    searches = pq.read_table(tmp_path / "arms" / "a" / "truth" / "searches").to_pandas()
    values = []
    for need in searches[searches.step == 0].need_id:
        wanted = set(grades[grades.need_id == need].item_id)
        if wanted:
            values.append(len(wanted & set(range(1, 101))) / min(100, len(wanted)))
    measured = read_days(loop, start, "a")[day_name(1)]["recall"]
    assert measured.n == len(values)
    assert measured.value == pytest.approx(np.mean(values))


def test_observables_by_hand(tmp_path, write_logs):
    rows = [
        # "bow" shows senses archery (items 1, 2) and ribbon (item 3): twice, once
        {"search_id": 1, "query": "bow", "item_id": 1, "user_id": 7, "searched_at": NOON},
        {"search_id": 1, "query": "bow", "item_id": 2, "user_id": 7, "searched_at": NOON},
        {"search_id": 1, "query": "bow", "item_id": 3, "user_id": 7, "searched_at": NOON},
        # reworded 60 s later for the same need, and again 100 s after that
        {"search_id": 2, "query": "tie a bow", "item_id": 3, "user_id": 7, "searched_at": NOON + 60_000_000},
        {"search_id": 3, "query": "ribbon", "item_id": 3, "user_id": 7, "searched_at": NOON + 160_000_000},
        # the same text again is paging; another need is no reformulation
        {"search_id": 4, "query": "bow", "item_id": 1, "user_id": 8, "searched_at": NOON},
        {"search_id": 5, "query": "ＢＯＷ", "item_id": 2, "user_id": 8, "searched_at": NOON + 1_000_000},
        {"search_id": 6, "query": "arrow", "item_id": 2, "user_id": 8, "searched_at": NOON + 2_000_000},
    ]
    logs = write_logs(
        tmp_path / "arm" / "logs", items=[{"item_id": i} for i in range(1, 11)], impressions=rows
    )
    needs = {1: 2, 2: 2, 3: 2, 4: 1, 5: 1, 6: 3}
    truth = tmp_path / "truth"
    truth.mkdir()
    tables = {
        "needs": {"need_id": [1, 2, 3], "head": ["bow", "bow", "arrow"],
                  "sense": ["archery", "ribbon", "arrow"]},
        "items": {"item_id": [1, 2, 3], "need_id": [1, 1, 2]},
        "grades": {"need_id": [1], "item_id": [1], "grade": [3]},
        "searches": {"search_id": list(needs), "need_id": list(needs.values())},
    }  # fmt: skip
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), truth / f"{name}.parquet")
    outcomes = tmp_path / "arm" / "truth" / "searches" / "day=2026-01-05"
    outcomes.mkdir(parents=True)
    at = {row["search_id"]: (row["user_id"], row["searched_at"]) for row in rows}
    columns = {
        "search_id": list(needs),
        "user_id": [at[search][0] for search in needs],
        "searched_at": [at[search][1] for search in needs],
        "need_id": list(needs.values()),
        "satisfied": [False, False, True, False, False, True],
    }
    pq.write_table(pa.table(columns), outcomes / "part-0.parquet")
    evidence = SimulatedDays(logs, (f"{truth}/searches.parquet",), truth, 10, 0, tmp_path / "arm")
    keys = ("catalogue", "senses", "satisfied", "reformulated")
    measured = measure_days(evidence, keys)["2026-01-05"]
    assert measured["catalogue"].value == pytest.approx(3 / 10)
    # "bow": archery 4 (items 1, 2, 1, 2) and ribbon 1: exp(-(.8 ln .8 + .2 ln .2)) = exp(.5004) = 1.649
    assert measured["senses"].value == pytest.approx(1.649, abs=0.001)
    assert measured["senses"].n == 1  # "arrow" shows nothing of its own sense
    assert (measured["satisfied"].value, measured["satisfied"].n) == (pytest.approx(2 / 6), 6)
    assert (measured["reformulated"].value, measured["reformulated"].n) == (pytest.approx(1 / 6), 6)


def test_arms_are_choices_of_sources():
    training = RunConfig().training
    assert SOURCES["crops"] & ~SOURCES["-p1"] == SOURCES["+p1"] & ~SOURCES["baseline"]
    assert arm_training("+p1", training) == training
    assert arm_training("clicks", training).loss == "infonce_binary"
    with pytest.raises(
        CropsError, match=r"unknown arm '\+p4'; arms: baseline.*did you mean '\+p1'|unknown arm"
    ):
        arm_training("+p4", training)
    measured = {"ahead": {"2026-01-01": {}, "2026-01-02": {}}, "behind": {"2026-01-01": {}}}
    assert shared_days(measured) == {"ahead": {"2026-01-01": {}}, "behind": {"2026-01-01": {}}}
