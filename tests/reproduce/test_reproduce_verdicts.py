"""Tables and verdicts from cells written by hand."""

import json

import pytest
from handmade_cells import write_cell

from crops.errors import CropsError
from crops.evaluation import Difference
from crops.reproduce.design import CT, LAYOUTS, METRICS_VERSION, NDCG, QR, QR_TRUTH
from crops.reproduce.make import remove_outdated
from crops.reproduce.tables import (
    breakdown_tables,
    converged_at,
    convergence,
    cost_table,
    differences,
    group,
    means,
    read_measured,
    result_table,
    speed_table,
)
from crops.reproduce.verdicts import ONLINE, Claim, Rules, judge, read_rules, rule

N = 60


def spread(low, step=0.0):
    """Return N values that vary by query, so that differences of methods are constant and exact."""
    return [low + step + 0.001 * (i % 7) for i in range(N)]


@pytest.fixture
def table3(tmp_path):
    """Two seeds; + P1 gains 2 points, P2 nothing, P3 loses 3, binary labels are 1 point above CroPS."""
    gains = {"fs_lr": 0.0, "plus_p1": 0.02, "plus_p2": 0.02, "crops": -0.01, "binary": 0.0, "p1_at_4": -0.01}
    cells = []
    for seed, base in ((0, 0.5), (1, 0.6)):
        for method, gain in gains.items():
            metrics = {name: spread(base, gain) for name in (CT, QR, NDCG, QR_TRUTH)}
            cells.append(write_cell(tmp_path, method, seed, metrics, p3=0.2 if seed else 0.1))
    return group(cells, list(gains), [0, 1])


def test_means_and_differences_by_hand(table3):
    """Spread over 60 queries: eight rounds of 0 to .006 (sum .021), then 0 to .003 (sum .006)."""
    rest = (8 * 0.021 + 0.006) / 60
    resampled = table3.resampled(CT)
    assert means(resampled, table3)["fs_lr"].mean == pytest.approx(0.55 + rest)
    difference = differences(resampled, table3, "fs_lr")["plus_p1"]
    assert (difference.mean, difference.ci_low, difference.ci_high) == tuple(
        pytest.approx(0.02) for _ in range(3)
    )
    assert difference.p == pytest.approx(2 / 4001)
    assert difference.n == 2 * N


def test_result_table_has_difference_star_and_the_papers_figure(table3):
    table = result_table(LAYOUTS["table3"], table3, {})
    assert table.rows[1][0] == "+ P1"
    lines = table.rows[1][1].split("\n")
    assert lines[2:] == ["+2.0*", "paper 63.3"]
    assert lines[0] == "57.3"
    assert table.rows[0][1].split("\n")[2:] == ["paper 59.6"]  # the reference has no difference to itself
    assert table.head[1] == "CT recall@100 (n = 120)"
    assert len(table.head) == len(table.rows[0]) == 1 + 4  # no cell has true recall: no such column
    assert table.reference == 0


def test_verdicts_by_rule_and_by_hand(table3):
    rules = read_rules({"fs_lr": "baseline", "plus_p1": "P1", "plus_p2": "P2", "binary": "binary"})
    found = {(one.claim, one.metric): one for one in judge(rules, "table3", table3, {})}
    gains = found["P1 adds to the baseline", "CT recall@100"]
    assert gains.ruling == "reproduced"
    assert "+2.0 points [+2.0, +2.0]" in gains.why
    assert gains.cells == ["plus_p1-0", "plus_p1-1", "fs_lr-0", "fs_lr-1"]
    assert found["P2 adds to P1", "CT recall@100"].ruling == "not reproduced"  # 0 < half a point
    assert found["P3 adds to P1 and P2", "CT recall@100"].ruling == "not reproduced"
    assert found["Binary labels lose against graded ones", "CT recall@100"].ruling == "not reproduced"
    # 2 * .02 - 0 - .02 = +.02 and .02 - 0 - (-.01) + .02 = +.05
    largest = found["P1 is the largest single gain", "QR recall@100"]
    assert largest.ruling == "reproduced"
    assert "+2.0 points" in largest.why
    assert "+5.0 points" in largest.why


def test_p3_is_not_judged_where_hardly_any_query_has_a_document(tmp_path):
    cells = [
        write_cell(tmp_path, method, 0, {name: spread(0.5) for name in (CT, QR, QR_TRUTH)}, p3=0.02)
        for method in ("fs_lr", "plus_p1", "plus_p2", "crops", "binary", "p1_at_4")
    ]
    own = group(cells, [cell.method for cell in cells], [0])
    (verdict, *_) = (v for v in judge(read_rules({}), "table3", own, {}) if v.claim == "P3 adds to P1 and P2")
    assert verdict.ruling == "not tested"
    assert "2.0 % of the training queries" in verdict.why


def test_trainings_of_a_world_are_brought_together(tmp_path):
    """CroPS 0.6 and 0.8 on every query, its rival 0.5 and 0.7, BM25 0.4: gains of 0.1 in each training."""
    cells = [
        write_cell(tmp_path, method, 0, {CT: [value] * 20}, repeat=repeat)
        for method, values in (("crops", (0.6, 0.8)), ("fs_lr", (0.5, 0.7)), ("bm25", (0.4,)))
        for repeat, value in enumerate(values)
    ]
    own = group(
        [*cells, write_cell(tmp_path, "dpr", 0, {CT: [0.9] * 20})], ["bm25", "crops", "dpr", "fs_lr"], [0], 2
    )
    assert own.methods == ("bm25", "crops", "fs_lr")  # DPR was trained once only
    assert own.folders("crops", "bm25") == ["crops-0", "crops-0-1", "bm25-0"]
    found = own.resampled(CT)
    assert found.means == pytest.approx([0.4, 0.7, 0.6])
    gain = found.contrast(own.weights({"crops": 1, "fs_lr": -1}))
    assert (gain.ci_low, gain.ci_high) == pytest.approx((0.1, 0.1))
    over = found.contrast(own.weights({"crops": 1, "bm25": -1}))
    assert (over.ci_low, over.ci_high) == pytest.approx((0.3 - 0.1 * 2**0.5, 0.3 + 0.1 * 2**0.5))
    assert "1 world, 2 trainings in each, and their queries" in result_table(LAYOUTS["table2"], own, {}).note


def test_a_missing_method_is_said_not_guessed(table3, tmp_path):
    cells = [cell for (cell,) in table3.cells.values() if (cell.method, cell.seed) != ("plus_p2", 1)]
    own = group(cells, list(table3.methods), [0, 1])
    assert "plus_p2" not in own.methods
    table = result_table(LAYOUTS["table3"], own, {"plus_p2": "step 3: the loss is nan"})
    assert table.rows[2][:2] == ["+ P2", "not tested: step 3: the loss is nan"]
    (verdict, *_) = (v for v in judge(read_rules({}), "table3", own, {}) if v.claim == "P2 adds to P1")
    assert (verdict.ruling, verdict.why) == ("not tested", "no cell of plus_p2 for every seed")


@pytest.mark.parametrize(
    ("oracle", "ruling"), [(0.004, "no headroom"), (-0.01, "no headroom"), (0.02, "not reproduced")]
)
def test_a_claim_has_no_headroom_where_the_oracle_moves_nothing(tmp_path, oracle, ruling):
    """P1 loses a point; an oracle that gains less than half a point leaves nothing to reproduce."""
    gains = {"fs_lr": 0.0, "plus_p1": -0.01, "oracle_source": oracle}
    cells = [write_cell(tmp_path, name, 0, {CT: spread(0.5, gain)}) for name, gain in gains.items()]
    found = judge(read_rules({}), "table3", group(cells, list(gains), [0]), {})
    verdict = found[0]
    assert (verdict.claim, verdict.metric) == ("P1 adds to the baseline", "CT recall@100")
    assert verdict.ruling == ruling
    assert f"oracle source {100 * oracle:+.1f} points" in verdict.why


def test_what_is_reproduced_stays_so_whatever_the_oracle_does(tmp_path):
    gains = {"fs_lr": 0.0, "plus_p1": 0.02, "oracle_source": 0.0}
    cells = [write_cell(tmp_path, name, 0, {CT: spread(0.5, gain)}) for name, gain in gains.items()]
    found = judge(read_rules({}), "table3", group(cells, list(gains), [0]), {})
    assert found[0].ruling == "reproduced"


def one(mean, low, high, p):
    return [Difference(mean, low, high, 10, p)], [p]


@pytest.mark.parametrize(
    ("kind", "given", "ruling"),
    [
        ("greater", one(0.02, 0.01, 0.03, 0.01), "reproduced"),
        ("greater", one(0.02, -0.01, 0.05, 0.2), "inconclusive"),
        ("greater", one(0.001, -0.002, 0.004, 0.5), "not reproduced"),
        ("greater", one(-0.02, -0.03, -0.01, 0.01), "not reproduced"),
        ("greater", one(0.003, 0.002, 0.004, 0.01), "reproduced"),
        ("not_less", one(-0.001, -0.004, 0.002, 0.5), "reproduced"),
        ("not_less", one(-0.001, -0.02, 0.02, 0.5), "inconclusive"),
        ("not_less", one(-0.02, -0.03, -0.01, 0.01), "not reproduced"),
    ],
)
def test_the_rules_with_a_margin_of_half_a_point(kind, given, ruling):
    assert rule(kind, *given, alpha=0.05, margin=0.005) == ruling


def test_a_metric_of_few_queries_is_not_tested(tmp_path):
    """49 queries in one world and 50 in the other are 49 a world, rounded down."""
    cells = [
        write_cell(tmp_path, name, seed, {CT: spread(0.5, gain)[: 49 + seed]})
        for name, gain in (("a", 0.02), ("b", 0.0))
        for seed in (0, 1)
    ]
    own = group(cells, ["a", "b"], [0, 1])
    claim = Claim("a beats b", "t", "greater", CT, ({"a": 1.0, "b": -1.0},))
    rulings = {
        fewest: judge(Rules(0.05, fewest, {CT: 0.005}, (claim,)), "t", own, {})[0] for fewest in (49, 50)
    }
    assert rulings[49].ruling == "reproduced"
    assert rulings[50].ruling == "not tested"
    assert rulings[50].why == "49 queries a world have this metric; it takes 50"


def test_p_values_of_a_table_are_corrected_together(tmp_path):
    """Two claims on the same cells: the smallest p-value, 2 / 4001, counts twice."""
    cells = [
        write_cell(tmp_path, name, 0, {CT: spread(0.5, gain)}) for name, gain in (("a", 0.02), ("b", 0.0))
    ]
    own = group(cells, ["a", "b"], [0])
    claim = Claim("a beats b", "t", "greater", CT, ({"a": 1.0, "b": -1.0},))
    alone, both = (Rules(0.0007, 50, {CT: 0.005}, claims) for claims in ((claim,), (claim, claim)))
    assert [v.ruling for v in judge(alone, "t", own, {})] == ["reproduced"]
    assert [v.ruling for v in judge(both, "t", own, {})] == ["inconclusive", "inconclusive"]


def test_convergence_by_hand(tmp_path):
    """Best .80, 1 % below is .792: first reached at step 50; 30 CPU-s for 300 steps make 5 CPU-s for 50."""
    scores = {25: 0.70, 50: 0.793, 75: 0.78, 100: 0.80}
    watched = write_cell(tmp_path, "crops", 0, {CT: spread(0.5)}, scores=scores)
    plain = write_cell(tmp_path, "crops", 0, {CT: spread(0.5)}, cpu_seconds=30)
    found = convergence(plain, watched)
    assert found.step == 50
    assert found.cpu_seconds == pytest.approx(5.0)
    table = speed_table(LAYOUTS["table4"], {"crops": [found]})
    assert table.rows == [["H-InfoNCE (CroPS)", "50", "0.100", "5.0", "88"]]
    (watched.folder / "evaluations.jsonl").write_text("{}\n")
    with pytest.raises(CropsError, match="is damaged"):
        converged_at(watched.folder)
    (plain.folder / "cell.json").write_text("{")
    with pytest.raises(CropsError, match="crops-0 is damaged"):
        read_measured(plain.folder)


@pytest.mark.parametrize(
    ("slow", "ruling"),
    [((20.0, 18.0), "reproduced"), ((20.0, 5.0), "inconclusive"), ((10.0, 9.0), "not reproduced")],
)
def test_speed_is_judged_seed_by_seed(tmp_path, slow, ruling):
    """Wanted: 1.6 times 10 CPU-s."""
    from crops.reproduce.tables import Convergence

    metrics = {name: spread(0.5) for name in (CT, QR, QR_TRUTH)}
    methods = ("infonce_graded", "softmax_ce", "crops")
    cells = [write_cell(tmp_path, method, seed, metrics) for method in methods for seed in (0, 1)]
    speeds = {
        "crops": [Convergence(100, 0.1, "watched-crops")] * 2,
        "infonce_graded": [Convergence(100, s / 100, "watched-slow") for s in slow],
    }
    found = judge(read_rules({}), "table4", group(cells, methods, [0, 1]), speeds)
    (verdict,) = (one for one in found if "twice as fast" in one.claim)
    assert verdict.ruling == ruling
    assert {"watched-crops", "watched-slow"} <= set(verdict.cells)
    (other,) = (one for one in found if "as fast as Softmax-CE" in one.claim)
    assert other.ruling == "not tested"


def test_cost_and_breakdown(tmp_path):
    """Half of the queries are head queries with recall 1, half unseen ones with recall 0."""
    metrics = {CT: [1.0, 0.0] * 30, "senses@100": [0.5, None] * 30}
    cells = [
        write_cell(tmp_path, method, 0, metrics, frequency=["head", "unseen"] * 30)
        for method in ("bm25", "crops")
    ]
    own = group(cells, ["bm25", "crops"], [0])
    cost = cost_table(LAYOUTS["table2"], own)
    assert cost.rows[0][:5] == ["BM25", "–", "–", "–", "50.0"]
    assert cost.rows[1][:4] == ["CroPS", "30.0", "40.0", "600 × 10.0"]
    (table,) = breakdown_tables(LAYOUTS["table2"], own)  # cells of old: no other breakdown
    found = dict(zip(table.head, table.rows[1], strict=True))
    assert found["CT: head (n = 30)"] == "100.0"
    assert found["CT: unseen (n = 30)"] == "0.0"
    assert found["CT: tail"] == "–"


def test_claims_about_users_are_listed_and_sent_elsewhere():
    found = judge(read_rules({}), ONLINE, group([], [], [0]), {})
    assert [one.ruling for one in found] == ["not tested"] * 2
    assert all("crops experiment" in one.why and not one.cells for one in found)


def test_every_claim_of_the_paper_is_there():
    """Seven baselines and each ablation on three readings; tables know all methods that claims name."""
    rules = read_rules({row.method: row.title for row in LAYOUTS["table2"].rows})
    counts = {table: sum(one.table == table for one in rules.claims) for table in (*LAYOUTS, ONLINE)}
    assert counts == {"table2": 7 * 3 + 1, "table3": 3 * 3 + 1 + 3 + 3, "table4": 3 + 3 + 2, ONLINE: 2}
    for claim in rules.claims:
        known = {row.method for row in LAYOUTS[claim.table].rows} if claim.table in LAYOUTS else {""}
        assert set(claim.methods) <= known, claim.text
    assert "CroPS finds more than TriSampler" in {one.text for one in rules.claims}


def test_cells_of_older_metrics_are_removed_to_be_made_again(tmp_path):
    for version in (METRICS_VERSION, 1, None):
        cell = write_cell(tmp_path, f"v{version}", 0, {CT: [0.5]})
        facts = cell.info | ({} if version is None else {"metrics_version": version})
        (cell.folder / "cell.json").write_text(json.dumps(facts))
    (tmp_path / "tests" / "sets").mkdir(parents=True)
    assert remove_outdated(tmp_path) == 2
    assert [folder.name for folder in (tmp_path / "cells").iterdir()] == [f"v{METRICS_VERSION}-0"]
    assert not (tmp_path / "tests" / "sets").exists()
    assert remove_outdated(tmp_path) == 0
