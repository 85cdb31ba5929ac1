"""From logs to a verdict, through the commands: what is found, what is refused, and what is said of it."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import crops
from crops.errors import CropsError
from crops.online.analysis import analyse, obrien_fleming, with_pairs
from crops.online.experiment import Experiment, assign, split

NOON = 1_767_614_400_000_000
DAY = 86_400_000_000
DAYS = ["2026-01-05", "2026-01-06", "2026-01-07"]
SPLIT = Experiment("e", "salt", split({"A": 0.5, "B": 0.5}))


def sums_table(users=600, lift=0.0, seed=0, days=DAYS[1:], arm=None):
    """The output of `user_days` for users who click with a chance of their own."""
    rng = np.random.default_rng(seed)
    ids = np.arange(1, users + 1)
    names = np.array(["A", "B"])[assign(SPLIT, ids)] if arm is None else np.full(users, arm, dtype=object)
    chance = np.random.default_rng(99).beta(4, 4, users)
    rows = []
    for day in days:
        searches = rng.poisson(3, users) + 1
        clicked = rng.binomial(searches, np.clip(chance + lift * (names == "B"), 0, 1))
        plays = clicked
        rows.append(
            {
                "user_id": ids,
                "arm": names.tolist(),
                "day": [day] * users,
                "searches": searches,
                "clicked_searches": clicked,
                "shown": 10 * searches,
                "clicks": clicked,
                "plays": plays,
                "long_plays": rng.binomial(plays, 0.4),
                "reformulated": rng.binomial(searches, 0.1),
                "ranked": 40 * searches,
                "ratio_ranked:dense": rng.binomial(40 * searches, 0.3),
                "ratio_shown:dense": rng.binomial(10 * searches, 0.3),
                "only_ranked:dense": rng.binomial(40 * searches, 0.05),
                "only_shown:dense": rng.binomial(10 * searches, 0.05),
            }
        )
    return pa.concat_tables([pa.table(columns) for columns in rows])


def changed(table, **columns):
    """The table with other values in columns."""
    for name, values in columns.items():
        array = values if isinstance(values, pa.Array) else pa.array(np.asarray(values, np.int64))
        table = table.set_column(table.column_names.index(name), name, array)
    return table


def of_arm(table, arm):
    return (np.array(table["arm"].to_pylist()) == arm).astype(int)


def test_a_large_effect_is_found_and_the_others_are_not():
    found = analyse(sums_table(lift=0.12), "A", ["B"], routes=("dense",), salts=100)
    assert found.checks["B"].holds
    assert found.of("B", "ctr").verdict == "better"
    assert found.of("B", "ctr").effect.low > 0
    assert found.of("B", "lpr").verdict == "no effect shown"
    assert found.of("B", "rqr").verdict == "no effect shown"
    assert found.of("B", "ratio_rank:dense").holm is None
    assert found.of("B", "ctr").holm >= found.of("B", "ctr").effect.p
    assert found.levels["A"]["ratio_show:dense"].value == pytest.approx(0.3, abs=0.02)
    assert {one.metric for one in found.false_positives} >= {"ctr", "lpr", "rqr"}
    table = sums_table()
    less = analyse(changed(table, reformulated=of_arm(table, "A") * 3), "A", ["B"], wanted=0.01, salts=0)
    assert less.of("B", "rqr").effect.absolute < 0
    assert less.of("B", "rqr").verdict == "better"  # lower is
    # so many users as are told have an error so small that 1 % is found: errors go with 1 / sqrt(users)
    ctr = less.of("B", "ctr")
    assert ctr.suffices > 300
    needed = ctr.effect.mde * np.sqrt(min(less.users.values()) / ctr.suffices)
    assert needed == pytest.approx(0.01 * ctr.effect.control, rel=0.01)


def test_days_before_sharpen_the_test():
    table, before = sums_table(lift=0.0), sums_table(seed=1, days=DAYS[:1])
    plain = analyse(table, "A", ["B"], salts=0)
    cuped = analyse(table, "A", ["B"], before=before, salts=0)
    assert cuped.pre_days == ("2026-01-05",)
    assert cuped.of("B", "ctr").effect.mde < 0.97 * plain.of("B", "ctr").effect.mde


def test_daily_looks_accumulate_to_the_whole():
    found = analyse(sums_table(lift=0.12), "A", ["B"], salts=0)
    looks = found.daily["B"]["ctr"]
    assert [look.day for look in looks] == DAYS[1:]
    assert looks[-1].so_far == found.of("B", "ctr").effect
    assert looks[0].alone == looks[0].so_far
    assert looks[-1].claims
    # O'Brien-Fleming of two looks for three metrics: at the first sqrt 2 times the last bound.
    assert looks[1].bound == pytest.approx(obrien_fleming(2, 0.05 / 3))
    assert looks[0].bound == pytest.approx(np.sqrt(2) * looks[1].bound)


def test_a_mis_assigned_log_is_caught_by_the_sample_ratio():
    # The logging loses a quarter of the treatment's users, those who search least.
    table = sums_table(users=1200, lift=0.12)
    arm, searches = np.array(table["arm"].to_pylist()), table["searches"].to_numpy()
    lost = (arm == "B") & (table["user_id"].to_numpy() % 4 == 0)
    assert searches[lost].any()
    found = analyse(table.filter(pa.array(~lost)), "A", ["B"], salts=0)
    assert not found.checks["B"].holds
    assert {one.verdict for one in found.findings} == {"refused"}
    assert "unbalanced sample" in found.of("B", "ctr").refused
    assert found.daily == {}
    # The same log passes where a smaller treatment was promised.
    assert analyse(table.filter(pa.array(~lost)), "A", ["B"], ratios={"B": 0.75}, salts=0).checks["B"].holds


def test_a_metric_without_denominator_leaves_the_others():
    table = sums_table()
    none = np.zeros(table.num_rows)
    table = changed(table, plays=none, long_plays=none)
    found = analyse(table, "A", ["B"], salts=20)
    assert found.of("B", "lpr").verdict == "refused"
    assert "denominator, plays, is 0" in found.of("B", "lpr").refused
    assert found.of("B", "ctr").effect is not None
    assert "lpr" not in found.levels["A"]
    assert "lpr" not in {one.metric for one in found.false_positives}


def test_paired_worlds_see_small_effects():
    live = analyse(sums_table(), "A", ["B"], salts=0)
    control = sums_table(seed=5, arm="A")
    clicked = control["clicked_searches"].to_numpy().copy()
    clicked[::40] = np.minimum(clicked[::40] + 1, control["searches"].to_numpy()[::40])
    other = changed(control, clicked_searches=clicked)
    # A user who did not come in one of the worlds counts with zeros there.
    found = with_pairs(live, control, {"B": other.slice(1), "none of these": other}).of("B", "ctr")
    assert found.paired.absolute > 0
    assert found.paired.p < 0.01
    assert found.paired.mde < 0.2 * found.effect.mde
    assert with_pairs(live, control, {}) == live


def test_impossible_arms_are_refused():
    table = sums_table(users=50)
    none = changed(table, arm=pa.nulls(table.num_rows, pa.string()))
    swapped = [{"A": "B", "B": "A"}[arm] for arm in table["arm"].to_pylist()[:3]]
    both = pa.concat_tables([table, changed(table.slice(0, 3), arm=pa.array(swapped))])
    for given, arms, message in (
        (table, ["A"], "arms A, A overlap"),
        (table, ["B", "B"], "arms A, B, B overlap"),
        (table, ["C"], "arm 'C' has no user; the arms in these logs: A, B"),
        (none, ["B"], "no search has an arm"),
        (both, ["B"], r"3 of 50 users are in two arms, e\.g\. user 1 in A and B"),
    ):
        with pytest.raises(CropsError, match=message):
            analyse(given, "A", arms)


def impressions(users=400, lift=0.25, days=3):
    """Logs of an experiment on the last two of three days: rows of search_impressions."""
    rng = np.random.default_rng(0)
    arm = np.array(["A", "B"])[assign(SPLIT, np.arange(1, users + 1))]
    rows = []
    for day in range(days):
        for user in range(1, users + 1):
            for _ in range(2):
                clicked = bool(rng.random() < 0.5 + lift * (arm[user - 1] == "B" and day > 0))
                rows.append(
                    {
                        "user_id": user,
                        "search_id": len(rows) + 1,
                        "query": f"query {rng.integers(50)}",
                        "searched_at": NOON + day * DAY + len(rows) * 1000,
                        "item_id": int(rng.integers(1, 30)),
                        "arm": f"e={arm[user - 1]}" if day else None,
                        "clicked": clicked,
                        "play_ms": int(rng.integers(40_000)) if clicked else None,
                        "duration_ms": 60_000,
                        "routes": int(rng.integers(1, 4)),
                    }
                )
    return rows


@pytest.fixture(scope="module")
def logs(tmp_path_factory, write_logs):
    items = [{"item_id": i, "author_id": i % 7} for i in range(1, 30)]
    return write_logs(tmp_path_factory.mktemp("team") / "logs", items=items, impressions=impressions())


def test_the_command_on_a_teams_logs(logs, tmp_path):
    out = tmp_path / "analysis"
    found = crops.analyse(
        logs, out, "A", ["B"], experiment="e", route=["dense=1"], relevance="none", effect=0.01, salts=50
    )
    written = json.loads((out / "analysis.json").read_text())
    assert written == found
    (one,) = written["analyses"]
    assert one["days"] == DAYS[1:]
    assert one["pre_days"] == DAYS[:1]
    ctr = next(finding for finding in one["findings"] if finding["metric"] == "ctr")
    assert ctr["verdict"] == "better"
    assert ctr["effect"]["absolute"] == pytest.approx(0.25, abs=0.06)
    assert set(one["reach"]) == {"A", "B"}
    page = (out / "report.html").read_text()
    assert re.search(r"e: CTR of B \+2\d\.\d\d points \(better\), against A", page)
    assert "Too few users for LPR of B" in page
    assert "Ratio_rank (dense), %" in page
    assert page.count("<svg") == 6
    assert not re.search(r'(src|href)="https?:', page)


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        ((), {}, "name the arms, e.g. --control A"),
        (("A", ["B"]), {"ratio": ["B"]}, r"--ratio B: say ARM=RATIO"),
        (("A", ["B"]), {"ratio": ["C=1"]}, "'C' is none of the treatments"),
        (("A", ["B"]), {"route": ["dense"]}, "no manifest names them"),
        (("A", ["B"]), {"route": ["dense=x"]}, "'x' is no bit"),
        (("A", ["B"]), {"experiment": "e", "pre_day": ["2026-01-06"]}, "end before 2026-01-06"),
        (("A", ["B"]), {}, "the arms in these logs: e=A, e=B"),
    ],
)
def test_the_command_refuses_what_it_cannot_read(logs, tmp_path, arms, options, message):
    with pytest.raises(CropsError, match=message):
        crops.analyse(logs, tmp_path / "x", *arms, relevance="none", **options)


def test_power_before_the_run(logs):
    found = {row["metric"]: row for row in crops.power(logs, share=0.25, effect=0.02, relevance="none")}
    assert found["ctr"]["users"] == 100
    assert found["ctr"]["suffices"] > 100
    assert found["ctr"]["mde"] > found["ctr"]["wanted"]
    with pytest.raises(CropsError, match="at most half of the users"):
        crops.power(logs, share=0.6, relevance="none")
    with pytest.raises(CropsError, match="--pre-day 2020-01-01: no search"):
        crops.power(logs, pre_day=["2020-01-01"], relevance="none")


def experiment_folder(folder, write_logs):
    """A small output of `crops experiment`: a world before, A/B days, and one world per arm."""
    rows = impressions(users=200)
    live = [{**row, "arm": f"{row['arm']};aa=a"} for row in rows if row["arm"]]
    write_logs(folder / "live" / "logs", impressions=live)
    write_logs(folder / "world" / "logs", impressions=[row for row in rows if not row["arm"]])
    for arm in "AB":
        write_logs(folder / "paired" / "e" / arm / "logs", impressions=live)
    needs = {"need_id": [0], "head": ["query"], "sense": ["s"], "need": ["n"]}
    (folder / "world" / "truth").mkdir()
    for name, columns in (("needs", needs), ("items", {"item_id": [1], "need_id": [0]})):
        pa.parquet.write_table(pa.table(columns), folder / "world" / "truth" / f"{name}.parquet")
    told = {"search_id": [row["search_id"] for row in live], "satisfied": [row["clicked"] for row in live]}
    for parent in ("live", "paired/e/A", "paired/e/B"):
        target = folder / parent / "truth" / "searches" / "day=2026-01-06"
        target.mkdir(parents=True)
        pa.parquet.write_table(pa.table(told), target / "part-0.parquet")
    arms = [{"name": arm, "first": 0, "end": 5000, "share": 0.5} for arm in "AB"]
    plan = {"name": "e", "salt": "s", "control": "A", "route": "dense", "arms": arms}
    (folder / "plan.json").write_text(json.dumps({"experiments": [plan], "days": DAYS[1:], "seed": 0}))
    return folder


def test_the_command_on_an_output_of_experiment_finished_or_not(write_logs, tmp_path, capsys):
    folder = experiment_folder(tmp_path / "out", write_logs)
    found = crops.analyse(folder, relevance="none", salts=20)
    (one,) = found["analyses"]
    findings = {finding["metric"]: finding for finding in one["findings"]}
    assert one["name"] == "e"
    assert findings["ctr"]["verdict"] == "better"
    satisfied, ctr = (findings[name]["effect"]["absolute"] for name in ("satisfied", "ctr"))
    assert satisfied == pytest.approx(ctr, abs=0.01)
    # Both worlds are the same one here.
    assert findings["ctr"]["paired"]["absolute"] == 0.0
    assert "ratio_rank:dense" in findings
    assert (folder / "analysis" / "report.html").exists()
    assert "has not lived through" not in capsys.readouterr().err
    shutil.rmtree(folder / "paired" / "e" / "B" / "logs" / "search_impressions" / "day=2026-01-07")
    (one,) = crops.analyse(folder, relevance="none", salts=0)["analyses"]
    assert "has not lived through 2026-01-07 yet" in capsys.readouterr().err.replace("\n", " ")
    assert {finding["paired"] for finding in one["findings"]} == {None}
    shutil.rmtree(folder / "live" / "logs" / "search_impressions" / "day=2026-01-07")
    with pytest.raises(CropsError, match="no searches on 2026-01-07; run `crops experiment` again"):
        crops.analyse(folder, relevance="none")
