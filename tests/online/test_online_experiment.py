"""Days of experiments: what arms share, what is written, and the commands that run them."""

import dataclasses
import json
import sys

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from online_hand import SESSIONS, Pick, make_start

from crops.cli.experiment import bubble_loop, experiment
from crops.engine.documents import COUNTED
from crops.errors import CropsError
from crops.online.experiment import (
    Experiment,
    Trial,
    assign,
    in_own_layer,
    log_exposures,
    name_arms,
    online_day,
    preregister,
    route_traffic,
    run_live,
    run_paired,
    split,
)
from crops.outputs import read_manifest
from crops.platform import ROUTES, day_name, same_for_all, simulate_day
from crops.simulation import FIRST_DAY, TRAIN, WARM_UP

HALF = split({"control": 0.4, "treatment": 0.4})


@pytest.fixture(scope="module")
def start():
    return make_start()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def swap(start, name="x", **routes):
    """A trial whose treatment gets routes."""
    return Trial(Experiment(name, f"{name}-salt", HALF), {"treatment": routes})


def test_numbers_fixed_per_session_follow_the_same_law():
    clicks = {}
    for name in ("stream", "keyed"):
        start = make_start(seed=3)
        simulate = simulate_day if name == "stream" else online_day
        day = simulate(start.fork(), 0, 3_000, same_for_all(start.deployed, start.users))
        shown = day.impressions.filter(pc.equal(day.impressions["stage"], "exposed"))
        clicks[name] = (
            np.mean(shown["clicked"].to_numpy(zero_copy_only=False)),
            pc.mean(shown["play_ms"]).as_py() / 1000,
            len(day.searches) / 3_000,
            pc.mean(pc.equal(day.feed["liked"], True)).as_py(),
        )
    # about 45,000 results: standard error of the CTR 0.0015; about 5,000 plays of 20 s: 0.4 s
    assert clicks["keyed"] == pytest.approx(clicks["stream"], rel=0.08)


def test_an_arm_changes_the_lists_of_its_users_and_of_nobody_else(start):
    traffic = route_traffic(start.deployed, [swap(start, dense=Pick("new", 2_000))], start.users)
    plain = online_day(start.fork(), 0, SESSIONS, same_for_all(start.deployed, start.users))
    mixed = online_day(start.fork(), 0, SESSIONS, traffic.served)
    inside = traffic.arms[0] == 1
    lists = {}
    for name, day in (("plain", plain), ("mixed", mixed)):
        firsts = day.searches.filter(pc.equal(day.searches["step"], 0))["search_id"]
        rows = day.impressions.filter(pc.is_in(day.impressions["search_id"], firsts.combine_chunks()))
        treated = inside[rows["user_id"].to_numpy() - 1]
        lists[name] = rows.filter(treated), rows.filter(~treated)
    assert lists["plain"][1].equals(lists["mixed"][1])
    new, old = lists["mixed"][0], lists["plain"][0]
    assert pc.unique(new["search_id"]).equals(pc.unique(old["search_id"]))
    assert not new["item_id"].equals(old["item_id"])
    # an arm can add a route; users in no experiment are not exposed
    traffic = route_traffic(start.deployed, [swap(start, sparse=Pick("more", 2_000))], start.users)
    day = online_day(start.fork(), 0, SESSIONS, traffic.served)
    added = (day.impressions["routes"].to_numpy() & (1 << ROUTES.index("sparse"))) > 0
    inside = (traffic.arms[0] == 1)[day.impressions["user_id"].to_numpy() - 1]
    assert added[inside].any()
    assert not added[~inside].any()
    logged = log_exposures(traffic, day.searches)["user_id"].to_numpy() - 1
    assert (traffic.arms[0][logged] >= 0).all()
    assert 0 < len(logged) < len(day.searches)


def test_an_a_a_test_changes_nothing(start):
    trial = Trial(Experiment("aa", "salt", HALF), {})
    traffic = route_traffic(start.deployed, [trial], start.users)
    assert len(traffic.served.retrievers) == 1
    plain = online_day(start.fork(), 0, SESSIONS, same_for_all(start.deployed, start.users))
    assert online_day(start.fork(), 0, SESSIONS, traffic.served).impressions.equals(plain.impressions)


def test_every_exposure_is_logged_with_its_arm(start, tmp_path):
    trials = [swap(start, "x", dense=Pick("new", 2_000)), Trial(Experiment("aa", "salt", HALF), {})]
    run_live(tmp_path, start, trials, days=1)
    searches = pq.read_table(tmp_path / "truth" / "searches")
    exposures = pq.read_table(tmp_path / "logs" / "exposures")
    for trial in trials:
        arms = assign(trial.experiment, searches["user_id"].to_numpy())
        names = [arm.name for arm in trial.experiment.arms]
        expected = {
            (search, names[arm])
            for search, arm in zip(searches["search_id"].to_pylist(), arms.tolist(), strict=True)
            if arm >= 0
        }
        logged = exposures.filter(pc.equal(exposures["experiment"], trial.experiment.name))
        rows = list(zip(logged["search_id"].to_pylist(), logged["arm"].to_pylist(), strict=True))
        assert len(rows) == len(set(rows))
        assert set(rows) == expected
    named = duckdb.sql(f"""
        select distinct user_id, arm from read_parquet('{tmp_path}/logs/search_impressions/*/*.parquet')""")
    expected = name_arms(route_traffic(start.deployed, trials, start.users)).to_pylist()
    assert {"x=treatment", "x=control;aa=treatment", None} <= set(expected)
    assert all(expected[user - 1] == arm for user, arm in named.fetchall())


def test_arms_with_equal_routes_have_no_paired_effect(start, tmp_path):
    same = start.deployed["dense"]
    run_paired(tmp_path, start, {"a": {"dense": same}, "b": {"dense": same}}, days=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) == 7


def test_paired_worlds_see_the_same_people(start, tmp_path):
    arms = {"a": {}, "b": {"dense": Pick("new", 2_000)}}
    run_paired(tmp_path, start, arms, days=2)
    firsts = []
    for arm in arms:
        table = pq.read_table(tmp_path / arm / "truth" / "searches")
        table = table.filter(pc.equal(table["step"], 0)).sort_by("search_id")
        firsts.append(table.select(["search_id", "user_id", "searched_at"]))
    assert firsts[0].equals(firsts[1])
    feeds = [files(tmp_path / arm / "logs" / "feed_events") for arm in arms]
    assert feeds[0] == feeds[1]
    assert files(tmp_path / "a") != files(tmp_path / "b")


def test_a_killed_run_ends_as_if_it_never_stopped(start, tmp_path, monkeypatch):
    trials = [swap(start, dense=Pick("new", 2_000))]
    run_live(tmp_path / "whole", start, trials, days=3)
    write = pq.write_table
    written = []

    def die(table, path, **options):
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(path)
        write(table, path, **options)

    monkeypatch.setattr("crops.online.experiment.pq.write_table", die)
    with pytest.raises(KeyboardInterrupt):
        run_live(tmp_path / "killed", start, trials, days=3)
    monkeypatch.undo()
    # what a kill between two moves would leave: a day without its last table
    done = [path for path in (tmp_path / "killed" / "truth" / "searches").iterdir()]
    assert len(done) == 1
    run_live(tmp_path / "killed", start, trials, days=3)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_copies_of_a_memory_learn_apart_and_share_their_co_watch_tables(start):
    platform = start.fork()
    online_day(platform, 0, SESSIONS, same_for_all(start.deployed, start.users))
    copy = platform.memory.copy()
    assert copy.co_watched() is platform.memory.co_watched()
    online_day(platform, 1, SESSIONS, same_for_all(start.deployed, start.users))
    assert len(copy.watched) == len(platform.memory.watched) - 1
    assert copy.co_watched() is not platform.memory.co_watched()


def test_experiments_that_change_one_route_need_one_layer(start):
    one, two = (swap(start, name, dense=Pick(name, 2_000)) for name in ("one", "two"))
    with pytest.raises(CropsError, match="'one' and 'two' both change route 'dense' in different layers"):
        route_traffic(start.deployed, [one, two], start.users)
    left = Experiment("one", "salt", split({"a": 0.3}))
    right = dataclasses.replace(
        left, name="two", arms=(dataclasses.replace(left.arms[0], first=3000, end=6000),)
    )
    trials = [Trial(one_, {"a": {"dense": Pick(one_.name, 2_000)}}) for one_ in (left, right)]
    assert len(route_traffic(start.deployed, trials, start.users).served.retrievers) == 3
    for routes, message in (
        ({"nobody": {}}, "no arm 'nobody'"),
        ({"control": {"telepathy": None}}, "no route 'telepathy'; routes: bm25"),
    ):
        with pytest.raises(CropsError, match=message):
            route_traffic(start.deployed, [Trial(Experiment("x", "s", HALF), routes)], start.users)
    with pytest.raises(CropsError, match="none of the 150 users"):
        in_own_layer("x", ("a", "b"), 0.0001, start)


def test_a_folder_of_another_plan_is_refused(start, tmp_path):
    preregister(tmp_path, [swap(start)], {"seed": 0})
    preregister(tmp_path, [swap(start)], {"seed": 0})
    with pytest.raises(CropsError, match="plan of another experiment"):
        preregister(tmp_path, [swap(start)], {"seed": 1})


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (experiment, {"arms": "baseline"}, "at least two arms"),
        (experiment, {"arms": "baseline,crops,baseline"}, "each once"),
        (experiment, {"arms": "baseline,+p4"}, r"unknown arm '\+p4'; arms: baseline"),
        (experiment, {"models": "dense,spare"}, "unknown model 'spare'.*sparse"),
        (experiment, {"days": 0}, "--days 0: an experiment lasts from 1 to 28 days"),
        (experiment, {"days": 29}, "--days 29"),
        (experiment, {"share": 0.4}, "sum to 1.6"),
        (experiment, {"share": 0.0}, "share 0.0"),
        (
            experiment,
            {"arms": "baseline,expanded"},
            "expanded changes the texts of items; use --models dense",
        ),
        (
            bubble_loop,
            {"arms": "crops,recommended", "model": "sparse"},
            "recommended changes the texts.*use --model dense",
        ),
        (bubble_loop, {"arms": "crops,-p9"}, "unknown arm '-p9'"),
        (bubble_loop, {"model": "both"}, "unknown model 'both'"),
        (bubble_loop, {"days": 40}, "40"),
    ],
)
def test_impossible_experiments_are_refused_before_any_work(tmp_path, command, options, message):
    with pytest.raises(CropsError, match=message):
        command(tmp_path / "out", size="tiny", **options)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def settings(tmp_path):
    """Settings of a platform with few searches, and of trainings of two steps."""
    file = tmp_path / "run.toml"
    file.write_text(
        '[training]\nsteps = 2\nbatch_queries = 8\ndim = 16\n[relevance]\nmodel = "none"\n'
        "[platform]\nsessions = 60\n[expansion]\nusers = 1\n[document]\nclick_users = 1\n"
    )
    return file


def test_a_tiny_loop_expands_with_the_days_before(tmp_path, settings):
    options = {"size": "tiny", "days": 2, "arms": "baseline,recommended"}
    out = bubble_loop(tmp_path / "out", **options, config=settings).parent
    folder = out / "arms"
    day, after = (day_name(FIRST_DAY + n) for n in range(2))
    expanded = folder / "recommended" / "expanded"
    assert read_manifest(expanded / after, "expand")["days"] == [day_name(TRAIN), day]
    assert not (expanded / day).exists()  # only those in use are kept
    # The click queries that the recipe trains on are those of all days before, too.
    mined = read_manifest(folder / "recommended" / "samples", "mine")
    assert mined[COUNTED] == [day_name(WARM_UP), day_name(TRAIN)]
    assert not (folder / "baseline" / "expanded").exists()
    measured = json.loads((out / "loop.json").read_text())
    assert {arm: sorted(days) for arm, days in measured.items()} == dict.fromkeys(measured, [day, after])
    own = [found[after]["own"]["value"] for found in measured.values()]
    assert own[0] != own[1]


def test_a_tiny_experiment_from_nothing_to_logs_and_back(tmp_path, settings, monkeypatch):
    analysed = []
    module = sys.modules["crops.cli.experiment"]
    monkeypatch.setattr(module, "analyse_experiment", lambda out, *_: analysed.append(out))
    options = {
        "size": "tiny",
        "days": 1,
        "arms": "baseline,click_queries,expanded,recommended",
        "models": "dense",
        "share": 0.2,
    }
    out = experiment(tmp_path / "out", **options, config=settings)
    plan = json.loads((out / "plan.json").read_text())
    assert [(one["name"], one["route"]) for one in plan["experiments"]] == [("dense", "dense"), ("aa", None)]
    written = {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    day = plan["days"][0]
    for arm in ("baseline", "click_queries", "expanded", "recommended"):
        assert f"paired/dense/{arm}/truth/searches/day={day}/part-0.parquet" in written
    assert f"live/logs/exposures/day={day}/part-0.parquet" in written

    def found(arm):
        file = out / f"paired/dense/{arm}/logs/search_impressions/day={day}/part-0.parquet"
        rows = pq.read_table(file, partitioning=None)
        return rows.filter(pc.greater(pc.bit_wise_and(rows["routes"], 1 << ROUTES.index("dense")), 0))[
            "item_id"
        ]

    for arm in ("click_queries", "expanded"):
        assert not found("baseline").equals(found(arm))
    # again: nothing is simulated, mined or trained anew
    experiment(tmp_path / "out", **options, config=settings)
    assert analysed == [out, out]
    assert written == {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    with pytest.raises(CropsError, match="plan of another experiment"):
        experiment(tmp_path / "out", **{**options, "share": 0.1}, config=settings)
    with pytest.raises(CropsError, match="simulated with other settings"):
        experiment(tmp_path / "out", **options, seed=1, config=settings)
