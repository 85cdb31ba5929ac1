"""The test sets of a day of logs: CT, QR, and by a simulator's truth annotation and true recall.

One set of relevant items per distinct normalised query of the test day: the union over its events.

- CT: clicked items.
- QR: items consumed after a reformulation, credited to the first query and kept by the training theta (CroPS,
  section on evaluation), beside it by an independent theta.

A simulator's truth (which need was behind a search, which items meet it) adds:

- QR by truth: consumed after a reformulation, grade >= 2 for the need of the first search; no theta;
- QR by an editor, who knows the query and not the searcher: grade >= 2 for a need that the day's searches of
  the query had;
- needs: what true recall asks for, the needs behind the searches of each query;
- annotation: for each query its most frequent need of the day (ties: the smaller need_id) and the list that
  the old system ranked at the first event with that need: exposed by rank, then unexposed by pre_score.

Breakdowns and diversity need `Slices`: frequency and senses of queries, age and exposure of items. Nothing of
it is shown to a model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.config import EvaluationConfig, ReformulationConfig
from crops.database import Connection, failing_as, open_database, parquet
from crops.engine import reformulation_positives
from crops.engine.backend import DuckDBBackend
from crops.engine.events import load_events
from crops.errors import CropsError
from crops.logs import Logs, open_logs
from crops.logs.days import DAY_US, day_bounds, spans
from crops.logs.sql import add_texts
from crops.protocols import PairScorer
from crops.retrieval.bm25 import splitter, tokeniser_for
from crops.text import document_text_sql

_INDEX = "testsets.json"
_TABLES, _INDEPENDENT = ("queries", "candidates", "ct", "qr"), "qr_independent"
_TRUTH_TABLES, _EDITOR = ("qr", "needs", "annotation", "grades"), "qr_editor"
_FACTS, _FACTS_BY_TRUTH = ("queries", "shown", "ages"), ("senses", "clicks")


@dataclass(frozen=True)
class TruthSets:
    """Test sets by truth; every table is sorted by its columns, in order."""

    qr: pa.Table
    """query_id, search_id, item_id: consumed after that event under another query, relevant to its need."""
    needs: pa.Table
    """query_id, need_id, searches: how many searches of the query had the need."""
    annotation: pa.Table
    """query_id, need_id, position (1-based in the old system's list), item_id, grade."""
    grades: pa.Table
    """need_id, item_id, grade: all candidates with a grade above 0 for the needs of the tables above."""
    qr_editor: pa.Table | None = None
    """query_id, search_id, item_id: as `qr`, relevant to any need that the query had; None in sets of old."""


@dataclass(frozen=True)
class TestSets:
    """The test sets of one day, or of several together; every table is sorted by its columns, in order."""

    __test__ = False  # pytest would collect a class of this name

    days: tuple[str, ...]
    """The test days, YYYY-MM-DD, ascending."""
    seed: int
    """Seed of the samples of queries."""
    queries: pa.Table
    """The queries of all sets: query_id, query (normalised), searches, users, seen (null if not known)."""
    candidates: pa.Table
    """The catalogue to search, item_id: uploaded before the last day ended, or at an unknown time."""
    ct: pa.Table
    """query_id, search_id, item_id: clicked in that event."""
    qr: pa.Table
    """query_id, search_id, item_id: consumed after that event under another query, kept by theta."""
    truth: TruthSets | None
    """What needs the truth; None where it is not known."""
    counts: dict[str, int]
    """Sizes before sampling, and what was left out."""
    qr_independent: pa.Table | None = None
    """QR by another theta than the training's, relevance and similarity alike; None where none was given."""

    @property
    def day(self) -> str:
        """The test days in words."""
        return spans(self.days)

    def candidate_ids(self) -> NDArray[np.int64]:
        """Return the ids of the catalogue [n], ascending: build the retriever with these."""
        ids: NDArray[np.int64] = self.candidates["item_id"].to_numpy()
        return ids


def build_testsets(
    logs: Logs,
    days: Collection[str],
    config: EvaluationConfig,
    reformulation: ReformulationConfig,
    *,
    relevance: PairScorer | None,
    similarity: PairScorer | None,
    truth: str | Path | None,
    seed: int,
    independent: tuple[PairScorer, PairScorer] | None = None,
    seen: Collection[int] | None = None,
    memory: str = "2GB",
) -> TestSets:
    """Build the test sets of a day, or of several days together: their events are pooled.

    Args:
        logs: the logs; only the days and the items are read.
        days: the test days, YYYY-MM-DD.
        config: sizes of the sets and of the annotated lists.
        reformulation: settings of QR, the same as of P1.
        relevance: theta; None keeps every candidate of QR.
        similarity: P(same intent) of two queries; None lets every later query count.
        truth: the simulator's `truth/` folder; None where there is no truth.
        independent: relevance and similarity by a theta that training does not use, for a second QR.
        seen: ids of the queries in the training data; None if not known.

    Raises:
        CropsError: the days hold no search, or a truth file is missing or lacks a column.
    """
    truth = None if truth is None else Path(truth)
    days = sorted(set(days))
    find = partial(reformulation_positives, logs, days, reformulation, memory=memory)
    # Each search for reformulations opens a database of its own: before ours, not beside it.
    later = find(relevance=relevance, similarity=similarity)
    later_any = None if truth is None else find(relevance=None, similarity=similarity)
    later_independent = independent and find(relevance=independent[0], similarity=independent[1])
    with DuckDBBackend(memory) as backend:
        load_events(backend, logs, days)
        backend.table("candidates", candidates_sql(days[-1]))
        backend.load("later", later.schema, later.to_batches())
        counts = {name: backend.count(f"({query})") for name, query in _COUNTS.items()}
        ct, qr = (backend.arrow(f"{_in_catalogue(pairs)} order by all") for pairs in (CLICKED, _LATER))
        ct, qr = sample_queries(ct, config.max_ct, seed), sample_queries(qr, config.max_qr, seed)
        used, sets, other = [ct, qr], None, None
        if later_independent is not None:
            other, other_counts = _independent_qr(backend, later_independent, config.max_qr, seed)
            counts |= other_counts
            used.append(other)
        if truth is not None and later_any is not None:
            backend.load("later_any", later_any.schema, later_any.to_batches())
            sets, truth_counts = build_truth_sets(backend, truth, config, seed)
            counts |= truth_counts
            used += [sets.qr, sets.needs, sets.annotation, *([sets.qr_editor] if sets.qr_editor else [])]
        queries = _queries(backend, used, seen)
        candidates = backend.arrow("select item_id from candidates order by item_id")
    return TestSets(tuple(days), seed, queries, candidates, ct, qr, sets, counts, other)


def save_testsets(testsets: TestSets, folder: str | Path) -> None:
    """Write the tables of the test sets as Parquet files and the rest as JSON into an existing folder."""
    folder = Path(folder)
    _write_tables(folder, "", testsets, (*_TABLES, _INDEPENDENT))
    if testsets.truth is not None:
        _write_tables(folder, "truth_", testsets.truth, (*_TRUTH_TABLES, _EDITOR))
    index = {
        "days": testsets.days,
        "seed": testsets.seed,
        "truth": testsets.truth is not None,
        "independent": testsets.qr_independent is not None,
        "counts": testsets.counts,
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def load_testsets(folder: str | Path) -> TestSets:
    """Read what `save_testsets` wrote.

    Raises:
        CropsError: the folder or one of its files is missing or damaged.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / _INDEX).read_text())
        tables = _read_tables(folder, "", (*_TABLES, *([_INDEPENDENT] if index.get("independent") else [])))
        truth = (
            TruthSets(**_read_tables(folder, "truth_", _TRUTH_TABLES, _EDITOR)) if index["truth"] else None
        )
        days = tuple(index["days"])
        return TestSets(days, index["seed"], truth=truth, counts=index["counts"], **tables)
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(f"{folder} does not hold test sets: {error}; build them again") from error


def _write_tables(folder: Path, prefix: str, tables: object, names: Sequence[str]) -> None:
    """Write the tables of these attributes, as far as there are such."""
    for name in names:
        if (table := getattr(tables, name)) is not None:
            pq.write_table(table, folder / f"{prefix}{name}.parquet")


def _read_tables(folder: Path, prefix: str, names: Sequence[str], *optional: str) -> dict[str, pa.Table]:
    """Return tables by name; of the optional ones those that are there."""
    files = {name: folder / f"{prefix}{name}.parquet" for name in (*names, *optional)}
    return {name: pq.read_table(file) for name, file in files.items() if name in names or file.exists()}


CLICKED = """
select t.query_id, l.search_id, l.item_id
from log_impressions l join texts t on t.raw = l.query where l.clicked
"""
"""The SELECT of what was clicked, of which CT is made."""
_LATER = "select distinct query_id, search_id, item_id from later"


def _in_catalogue(pairs: str) -> str:
    return f"select * from ({pairs}) semi join candidates using (item_id)"


def _outside(pairs: str) -> str:
    return f"select * from ({pairs}) anti join candidates using (item_id)"


_COUNTS = {
    "searches": "select 1 from searches",
    "queries": "select 1 from queries",
    "ct_queries": f"select distinct query_id from ({_in_catalogue(CLICKED)})",
    "ct_pairs": _in_catalogue(CLICKED),
    "ct_pairs_outside_catalogue": _outside(CLICKED),
    "qr_queries": f"select distinct query_id from ({_in_catalogue(_LATER)})",
    "qr_pairs": _in_catalogue(_LATER),
    "qr_pairs_outside_catalogue": _outside(_LATER),
}


def _independent_qr(
    backend: DuckDBBackend, later: pa.Table, limit: int, seed: int
) -> tuple[pa.Table, dict[str, int]]:
    """Return QR by the independent theta, and count its pairs before sampling and those in QR too."""
    backend.load("later_independent", later.schema, later.to_batches())
    pairs = _in_catalogue("select distinct query_id, search_id, item_id from later_independent")
    counts = {
        "qr_independent_queries": backend.count(f"(select distinct query_id from ({pairs}))"),
        "qr_independent_pairs": backend.count(f"({pairs})"),
        "qr_pairs_of_both": backend.count(f"({_in_catalogue(_LATER)} intersect {pairs})"),
    }
    return sample_queries(backend.arrow(f"{pairs} order by all"), limit, seed), counts


def candidates_sql(day: str) -> str:
    """Return the SELECT of the catalogue of a test day: uploaded before it ends, or at an unknown time."""
    return f"select item_id from log_items where uploaded_at is null or uploaded_at <= {day_bounds(day)[1]}"


def _queries(backend: DuckDBBackend, used: list[pa.Table], seen: Collection[int] | None) -> pa.Table:
    ids = pa.concat_tables([table.select(["query_id"]) for table in used])
    backend.load("used", ids.schema, ids.to_batches())
    queries = backend.arrow(
        "select query_id, query, searches, users from queries semi join used using (query_id) "
        "order by query_id"
    )
    flags = pa.nulls(len(queries), pa.bool_())
    if seen is not None:
        flags = pc.is_in(queries["query_id"], pa.array(sorted(seen), pa.int64()))
    return queries.append_column("seen", flags)


RELEVANT_GRADE = 2
"""From this grade on an item meets a need (grades are 0 to 3)."""
_COLUMNS = {"searches": ("search_id", "need_id"), "grades": ("need_id", "item_id", "grade")}


def build_truth_sets(
    backend: DuckDBBackend, truth: Path, config: EvaluationConfig, seed: int
) -> tuple[TruthSets, dict[str, int]]:
    """Build the test sets by truth, and count what they were drawn from.

    Args:
        backend: holds the events of the test day, `candidates` and `later_any` (QR without theta).
        truth: folder of searches.parquet and grades.parquet.

    Raises:
        CropsError: a truth file is missing or lacks a column.
    """
    for name, columns in _COLUMNS.items():
        backend.view(f"truth_{name}", f"select {', '.join(columns)} from {_scan(truth, name, columns)}")
    backend.table("event_needs", _EVENT_NEEDS)
    backend.table("need_grades", _NEED_GRADES)
    backend.table("query_needs", _QUERY_NEEDS)
    backend.table("annotated", _annotated_sql(config.ndcg_pool))
    counts = {
        "searches_without_need": backend.count("searches") - backend.count("event_needs"),
        "qr_truth_queries": backend.count(f"(select distinct query_id from ({_QR}))"),
        "qr_editor_queries": backend.count(f"(select distinct query_id from ({_QR_EDITOR}))"),
        "needs_queries": backend.count("(select distinct query_id from query_needs)"),
        "annotated_queries": backend.count("(select distinct query_id from annotated)"),
    }
    needs = sample_queries(_sorted(backend, "query_needs"), config.max_ct, seed)
    annotation = sample_queries(_sorted(backend, "annotated"), config.max_annotated, seed)
    grades = _sorted(backend, "need_grades")
    used = pa.chunked_array([*needs["need_id"].chunks, *annotation["need_id"].chunks], pa.int64())
    sets = TruthSets(
        qr=sample_queries(_sorted(backend, f"({_QR})"), config.max_qr, seed),
        needs=needs,
        annotation=annotation,
        grades=grades.filter(pc.is_in(grades["need_id"], used.unique())),
        qr_editor=sample_queries(_sorted(backend, f"({_QR_EDITOR})"), config.max_qr, seed),
    )
    return sets, counts


_EVENT_NEEDS = """
select s.search_id, s.query_id, s.searched_at, t.need_id
from searches s join truth_searches t on t.search_id = s.search_id
"""
_NEED_GRADES = """
select g.need_id, g.item_id, cast(g.grade as BIGINT) as grade
from truth_grades g join candidates c on c.item_id = g.item_id
where g.grade > 0 and g.need_id in (select need_id from event_needs)
"""
_QUERY_NEEDS = "select query_id, need_id, count(*) as searches from event_needs group by query_id, need_id"
_QR = f"""
select distinct l.query_id, l.search_id, l.item_id
from later_any l
join event_needs e on e.search_id = l.search_id
join need_grades g on g.need_id = e.need_id and g.item_id = l.item_id
where g.grade >= {RELEVANT_GRADE}
"""
_QR_EDITOR = _QR.replace(
    "event_needs e on e.search_id = l.search_id", "query_needs e on e.query_id = l.query_id"
)


def _annotated_sql(pool: int) -> str:
    return f"""
    with majority as (
        select query_id, need_id from query_needs
        qualify row_number() over (partition by query_id order by searches desc, need_id) = 1
    ), first_event as (
        select e.query_id, e.need_id, e.search_id
        from event_needs e join majority m on m.query_id = e.query_id and m.need_id = e.need_id
        qualify row_number() over (partition by e.query_id order by e.searched_at, e.search_id) = 1
    ), ranked as (
        select f.query_id, f.need_id, l.item_id,
            row_number() over (
                partition by f.query_id
                order by l.stage = 'unexposed', l.rank nulls last, l.pre_score desc nulls last, l.item_id
            ) as position
        from first_event f
        join log_impressions l on l.search_id = f.search_id and l.stage in ('exposed', 'unexposed')
        join candidates c on c.item_id = l.item_id
    )
    select r.query_id, r.need_id, r.position, r.item_id, coalesce(g.grade, 0) as grade
    from ranked r left join need_grades g on g.need_id = r.need_id and g.item_id = r.item_id
    where r.position <= {pool}
    """


def _sorted(backend: DuckDBBackend, relation: str) -> pa.Table:
    return backend.arrow(f"select * from {relation} order by all")


def _scan(truth: Path, name: str, columns: tuple[str, ...]) -> str:
    if truth.is_file():
        raise CropsError(
            f"{truth} is a file and no truth: judgements of an annotator err. Truth is the folder that "
            "`crops simulate` wrote"
        )
    file = truth / f"{name}.parquet"
    if not file.is_file():
        raise CropsError(f"{file} is missing: give the truth/ folder that `crops simulate` wrote, or none")
    if absent := set(columns) - set(pq.read_schema(file).names):
        raise CropsError(f"{file} lacks the columns {', '.join(sorted(absent))}")
    return parquet(file)


FREQUENCIES = ("head", "torso", "tail", "unseen")
"""A third of the training searches each: the most frequent queries, the next, the rest; never searched."""
AGES = ("new", "recent", "old")
"""Uploaded after the training day ended; within `RECENT_DAYS` before that; earlier."""
RECENT_DAYS = 7
SHOWN = ("text", "meaning", "never")
"""Whether what was clicked had been shown up to the training day: for this query, for another with its
meaning, or for neither."""


@dataclass(frozen=True)
class Slices:
    """Tables beside the test sets of a day; every table is sorted by its columns, in order."""

    queries: pa.Table
    """query_id, frequency (of `FREQUENCIES`), senses (how many its test searches meant; null: unknown)."""
    shown: pa.Table
    """query_id, item_id: shown for that query up to the training day."""
    ages: pa.Table
    """item_id, age (one of `AGES`, null if the upload time is not known) of the candidates."""
    senses: pa.Table | None = None
    """query_id, sense, item_id: candidates of each sense that the query's test searches meant."""
    clicks: pa.Table | None = None
    """query_id, item_id, shown (one of `SHOWN`), wordless (no word of the item is in a test query of the
    meaning) of the pairs of CT; None without truth, and in slices of old."""


def build_slices(
    logs: str | Path, train_day: str, testsets: TestSets, truth: str | Path | None, memory: str
) -> Slices:
    """Look up what is known of a test day besides its answers.

    Args:
        logs: accepted logs with the days up to the training day.
        train_day: the training day, YYYY-MM-DD.
        testsets: the test sets; their queries and candidates are described.
        truth: the simulator's `truth/` folder; None where there is no truth.

    Raises:
        CropsError: the logs or the truth cannot be read.
    """
    truth = None if truth is None else Path(truth)
    logs = Path(logs)
    opened = open_logs(logs)
    searched, items = f"({opened.sql('search_impressions')})", f"({opened.sql('items')})"
    with failing_as(f"{logs}: cannot read what the breakdowns need"), open_database(memory) as db:
        add_texts(db, f"select query from {searched}")
        db.register("wanted", testsets.queries)
        db.register("candidates", testsets.candidates)
        db.execute(_SLICE_TABLES.format(searched=searched, train=train_day, test="', '".join(testsets.days)))
        end = day_bounds(train_day)[1] + 1
        ages = _arrow(db, _AGES.format(items=items, end=end, recent=end - RECENT_DAYS * DAY_US))
        senses = None if truth is None else _arrow(db, _senses_sql(truth))
        clicks: pa.Table | None = None
        counted = "select null::BIGINT as query_id, null::BIGINT as senses where false"
        if truth is not None and senses is not None:
            db.register("senses", senses)
            clicks = _clicks(db, truth, searched, items, train_day, testsets)
            counted = "select query_id, count(distinct sense) as senses from senses group by query_id"
        queries = _arrow(db, _QUERIES.format(senses=counted))
        return Slices(queries, _arrow(db, _SHOWN), ages, senses, clicks)


def save_slices(slices: Slices, folder: str | Path) -> None:
    """Write the tables as Parquet files into an existing folder."""
    _write_tables(Path(folder), "facts_", slices, (*_FACTS, *_FACTS_BY_TRUTH))


def load_slices(folder: str | Path) -> Slices:
    """Read what `save_slices` wrote.

    Raises:
        CropsError: a file is missing or damaged.
    """
    try:
        return Slices(**_read_tables(Path(folder), "facts_", _FACTS, *_FACTS_BY_TRUTH))
    except (OSError, ValueError) as error:
        raise CropsError(
            f"{folder} does not hold the slices of test sets: {error}; build them again"
        ) from error


_SLICE_TABLES = """
create table events as
    select distinct day, search_id, t.query from {searched} f join texts t on t.raw = f.query;
create table trained as
    select query, count(*) as n from events where day = '{train}' group by query;
create table placed as
    select query, (sum(n) over (order by n desc, query) - n) / sum(n) over () as before from trained;
create table exposed as
    select distinct t.query, item_id from {searched} f join texts t on t.raw = f.query
    where stage = 'exposed' and day <= '{train}';
create table tested as select * from events where day in ('{test}');
"""

_QUERIES = """
select w.query_id,
    case when p.before is null then 'unseen' when p.before < 1 / 3 then 'head'
         when p.before < 2 / 3 then 'torso' else 'tail' end as frequency, s.senses
from wanted w left join placed p using (query) left join ({senses}) s on s.query_id = w.query_id
order by w.query_id
"""
_SHOWN = """
select w.query_id, e.item_id from exposed e join wanted w using (query)
join candidates using (item_id) order by all
"""
_AGES = """
select item_id, case when uploaded_at is null then null when uploaded_at >= {end} then 'new'
                     when uploaded_at >= {recent} then 'recent' else 'old' end as age
from {items} join candidates using (item_id) order by item_id
"""


def _senses_sql(truth: Path) -> str:
    searches, needs, grades = (parquet(truth / f"{name}.parquet") for name in ("searches", "needs", "grades"))
    return f"""
    with meant as (
        select distinct w.query_id, n.head, n.sense from tested e join wanted w using (query)
        join {searches} using (search_id) join {needs} n using (need_id)
    ), about as (
        select distinct n.head, n.sense, g.item_id from {grades} g join {needs} n using (need_id)
        join candidates using (item_id) where g.grade >= 2
    )
    select m.query_id, m.head || ' / ' || m.sense as sense, a.item_id
    from meant m join about a using (head, sense) order by all
    """


_CLICKS = """
create table meant as
    select search_id, n.head || ' / ' || n.sense as meaning from {searches} join {needs} n using (need_id);
create table met as
    select distinct m.meaning, f.item_id from {searched} f join meant m using (search_id)
    where f.stage = 'exposed' and f.day <= '{train}';
create table clicked as
    select distinct c.query_id, c.item_id, m.meaning from ct c join meant m using (search_id);
"""
_MEANING_TEXTS = """
select meaning, string_agg(query, ' ') as text from (
    select distinct m.meaning, e.query from tested e join meant m using (search_id)
) group by meaning order by meaning
"""
_PLACED = """
select c.query_id, c.item_id,
    case when bool_or(e.item_id is not null) then 'text' when bool_or(m.item_id is not null) then 'meaning'
         else 'never' end as shown, bool_and(s.item_id is null) as wordless
from clicked c join wanted w using (query_id)
left join exposed e on e.query = w.query and e.item_id = c.item_id
left join met m on m.meaning = c.meaning and m.item_id = c.item_id
left join said s on s.meaning = c.meaning and s.item_id = c.item_id
group by c.query_id, c.item_id order by c.query_id, c.item_id
"""


def _clicks(
    db: Connection, truth: Path, searched: str, items: str, train_day: str, testsets: TestSets
) -> pa.Table:
    """Return `Slices.clicks`; meanings are senses: head and sense of a need."""
    searches, needs = (parquet(truth / f"{name}.parquet") for name in ("searches", "needs"))
    db.register("ct", testsets.ct)
    db.execute(_CLICKS.format(searches=searches, needs=needs, searched=searched, train=train_day))
    asked = _arrow(db, _MEANING_TEXTS)
    texts = _arrow(db, f"select item_id, {document_text_sql()} as text from {items} order by item_id")
    words = splitter(tokeniser_for([texts["text"], asked["text"]]))
    known = {
        meaning: set(own)
        for meaning, own in zip(asked["meaning"].to_pylist(), words(asked["text"].to_pylist()), strict=True)
    }
    own_words = dict(zip(texts["item_id"].to_pylist(), words(texts["text"].to_pylist()), strict=True))
    pairs = _arrow(db, "select distinct meaning, item_id from clicked").to_pylist()
    said = [one for one in pairs if not known[one["meaning"]].isdisjoint(own_words[one["item_id"]])]
    schema = pa.schema([("meaning", pa.string()), ("item_id", pa.int64())])
    db.register("said", pa.Table.from_pylist(said, schema=schema))
    return _arrow(db, _PLACED)


def _arrow(db: Connection, sql: str) -> pa.Table:
    table: pa.Table = db.sql(sql).to_arrow_table()
    return table


def sample_queries(table: pa.Table, limit: int, seed: int) -> pa.Table:
    """Keep the rows of at most `limit` queries, each as likely as any other; the order of rows stays."""
    ids = np.unique(table["query_id"].to_numpy())
    if len(ids) <= limit:
        return table
    drawn = np.random.default_rng(seed).choice(ids, size=limit, replace=False)
    return table.filter(pc.is_in(table["query_id"], pa.array(drawn)))


def grouped(
    keys: NDArray[np.int64], *columns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[list[NDArray[np.int64]], ...]]:
    """Split columns [n] by key.

    Returns:
        The distinct keys [g], ascending, and each column as g arrays, rows in the order they came.
    """
    order = np.argsort(keys, kind="stable")
    distinct, starts = np.unique(keys[order], return_index=True)
    # Splitting an empty column would still give one (empty) group.
    split = (np.split(column[order], starts[1:]) if len(distinct) else [] for column in columns)
    return distinct, tuple(split)
