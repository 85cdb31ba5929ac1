"""The same job in pandas and in Polars, written straightforwardly: merge on the user, filter, group, sort.

Pair scores come from the same cache; the samples must be identical to the engine's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq

from crops.config import EngineConfig
from crops.engine.merge import PRIME
from crops.text import content_id, document_text, normalise_query

CAPS = {8: 50, 4: 20, 2: 20, 1: 20}
CAP_USER, CAP_FEED = 50, 100
P1_WINDOW, P2_WINDOW = 90_000_000, 1_800_000_000
LABELS = {64: 5, 32: 4, 8: 4, 4: 3, 2: 2, 1: 1}
SHIFT = int(np.random.default_rng(0).integers(PRIME))


def item_keys(logs: Path) -> tuple[list[int], list[int]]:
    """Return item ids and the hashes of their texts."""
    items = pq.read_table(logs / "items.parquet").to_pylist()
    return [row["item_id"] for row in items], [content_id(document_text(row)) for row in items]


def pandas_job(logs: Path, cache: Path, out: Path, config: EngineConfig) -> None:
    """Mine with pandas, everything in memory."""
    shown = pd.read_parquet(logs / "search_impressions")
    raw = shown["query"].unique()
    texts = pd.DataFrame({"query": raw, "query_id": [content_id(normalise_query(text)) for text in raw]})
    shown = shown.merge(texts, on="query")
    long_play = shown["play_ms"] >= np.where(shown["duration_ms"] <= 18_000, shown["duration_ms"], 18_000)
    shown["consumed"] = (shown["stage"] == "exposed") & (shown["clicked"] | long_play)
    bits = shown["stage"].map({"filtered": 1, "unexposed": 2, "exposed": 4}).astype("int64")
    shown["source"] = bits.where(~shown["clicked"], 8)
    searches = shown.groupby("search_id", as_index=False)[["user_id", "query_id", "searched_at"]].min()

    pairs = shown.drop_duplicates(["query_id", "item_id", "source"])
    pairs = pairs.groupby(["query_id", "item_id"], as_index=False)["source"].sum()
    stage = 2 ** np.floor(np.log2(pairs["source"])).astype("int64")
    key = (pairs["item_id"] % PRIME) * (1 + (pairs["query_id"] % PRIME + SHIFT) % (PRIME - 1)) % PRIME
    pairs = pairs.assign(stage=stage, key=key).sort_values(["query_id", "stage", "key", "item_id"])
    pairs = pairs[pairs.groupby(["query_id", "stage"]).cumcount() < pairs["stage"].map(CAPS)]

    both = searches.merge(searches, on="user_id", suffixes=("", "_via"))
    gap = both["searched_at_via"] - both["searched_at"]
    both = both[(gap > 0) & (gap <= P1_WINDOW) & (both["query_id"] != both["query_id_via"])]
    consumed = shown.loc[shown["consumed"], ["search_id", "item_id"]]
    p1 = both.merge(consumed, left_on="search_id_via", right_on="search_id", suffixes=("", "_later"))
    p1 = p1[["query_id", "item_id", "search_id", "query_id_via", "user_id"]].drop_duplicates()
    similar = pd.read_parquet(cache / "similarity")
    p1 = p1.merge(similar, left_on=["query_id", "query_id_via"], right_on=["left_key", "right_key"])
    p1 = p1[p1["score"] >= config.reformulation.similarity].drop(columns=["score", "left_key", "right_key"])

    feed = pd.read_parquet(logs / "feed_events")
    length = np.where(feed["duration_ms"] <= 18_000, feed["duration_ms"], 18_000)
    feed = feed.loc[feed["play_ms"] >= length, ["user_id", "item_id", "watched_at"]]
    near = searches.merge(feed, on="user_id")
    near["distance"] = (near["watched_at"] - near["searched_at"]).abs()
    near = near[near["distance"] <= P2_WINDOW]
    near = near.sort_values(["distance", "watched_at", "search_id"], kind="stable")
    near = near.drop_duplicates(["query_id", "user_id", "item_id"])
    near = near.sort_values(["distance", "watched_at", "item_id"], kind="stable")
    p2 = near[near.groupby(["query_id", "user_id"]).cumcount() < CAP_FEED]

    found = pd.concat([p1.assign(source=64, watched_at=pd.NA), p2.assign(source=32, query_id_via=pd.NA)])
    found = found[["query_id", "item_id", "source", "search_id", "query_id_via", "user_id", "watched_at"]]
    found = found.merge(pd.DataFrame(dict(zip(("item_id", "right_key"), item_keys(logs), strict=True))))
    theta = pd.read_parquet(cache / "relevance").rename(columns={"left_key": "query_id"})
    found = found.merge(theta, on=["query_id", "right_key"])
    alpha = np.where(found["source"] == 64, config.reformulation.relevance, config.feed.relevance)
    found = found[found["score"] > alpha]

    added = found.groupby(["query_id", "user_id", "item_id"], as_index=False)[["source", "score"]].max()
    added["key"] = (
        (added["item_id"] % PRIME) * (1 + (added["query_id"] % PRIME + SHIFT) % (PRIME - 1)) % PRIME
    )
    added = added.sort_values(["source", "score", "key", "item_id"], ascending=[False, False, True, True])
    added = added[added.groupby(["query_id", "user_id"]).cumcount() < CAP_USER]
    found = found.merge(added[["query_id", "user_id", "item_id"]])
    clicks = shown.loc[shown["source"] == 8, ["query_id", "item_id", "source", "search_id"]]
    clicks = clicks.merge(pairs[["query_id", "item_id"]])
    evidence = pd.concat([clicks, found]).sort_values(["query_id", "item_id", "source", "search_id"])

    bits_of = pd.concat([pairs[["query_id", "item_id", "source"]], found[["query_id", "item_id", "source"]]])
    bits_of = bits_of.drop_duplicates().groupby(["query_id", "item_id"], as_index=False)["source"].sum()
    label = np.select([bits_of["source"] & bit > 0 for bit in LABELS], list(LABELS.values()))
    out.mkdir(parents=True, exist_ok=True)
    evidence.to_parquet(out / "evidence.parquet")
    bits_of.assign(label=label).sort_values(["query_id", "item_id"]).to_parquet(out / "samples.parquet")


def polars_job(logs: Path, cache: Path, out: Path, config: EngineConfig) -> None:
    """Mine with Polars' streaming engine, one lazy query for each of the two outputs."""
    raw = pl.scan_parquet(logs / "search_impressions/**/*.parquet", hive_partitioning=False)
    distinct = raw.select("query").unique().collect(engine="streaming")["query"].to_list()
    ids = [content_id(normalise_query(text)) for text in distinct]
    texts = pl.LazyFrame({"query": distinct, "query_id": ids}, schema_overrides={"query_id": pl.Int64})
    c = pl.col
    full = pl.min_horizontal(pl.when(c("duration_ms") > 0).then(c("duration_ms")), pl.lit(18_000))
    exposed = c("stage") == "exposed"
    source = pl.when(c("clicked")).then(8).when(exposed).then(4).when(c("stage") == "unexposed").then(2)
    shown = raw.join(texts, on="query").select(
        "search_id", "user_id", "query_id", "item_id", "searched_at",
        source.otherwise(1).cast(pl.Int64).alias("source"),
        (exposed & (c("clicked") | (c("play_ms") >= full).fill_null(False))).alias("consumed"),
    )  # fmt: skip
    searches = shown.group_by("search_id").agg(c("user_id", "query_id", "searched_at").min())
    searches = searches.collect(engine="streaming").lazy()
    key = (
        (c("item_id") % PRIME) * (1 + ((c("query_id") % PRIME + PRIME) % PRIME + SHIFT) % (PRIME - 1)) % PRIME
    )
    pairs = shown.group_by("query_id", "item_id").agg(c("source").bitwise_or())
    stage = pl.when(c("source") >= 8).then(8).when(c("source") >= 4).then(4).when(c("source") >= 2).then(2)
    pairs = pairs.with_columns(stage.otherwise(1).alias("stage"), key.alias("key"))
    place = pl.struct("key", "item_id").rank("ordinal").over("query_id", "stage")
    pairs = pairs.with_columns(place.alias("place"))
    pairs = pairs.filter(c("place") <= pl.when(c("stage") == 8).then(50).otherwise(20))
    pairs = pairs.select("query_id", "item_id", "source").collect(engine="streaming").lazy()

    gap = c("searched_at_via") - c("searched_at")
    both = searches.join(searches, on="user_id", suffix="_via")
    both = both.filter((gap > 0) & (gap <= P1_WINDOW) & (c("query_id") != c("query_id_via")))
    consumed = shown.filter("consumed").select(search_id_via="search_id", item_id="item_id")
    p1 = both.join(consumed, on="search_id_via")
    p1 = p1.select("query_id", "item_id", "search_id", "query_id_via", "user_id").unique()
    similar = pl.scan_parquet(cache / "similarity/*.parquet").filter(
        c("score") >= config.reformulation.similarity
    )
    p1 = p1.join(
        similar, left_on=["query_id", "query_id_via"], right_on=["left_key", "right_key"], how="semi"
    ).with_columns(source=pl.lit(64, pl.Int64), watched_at=pl.lit(None, pl.Int64))

    feed = pl.scan_parquet(logs / "feed_events/**/*.parquet", hive_partitioning=False)
    feed = feed.filter((c("play_ms") >= full).fill_null(False)).select("user_id", "item_id", "watched_at")
    near = searches.join(feed, on="user_id").with_columns(distance=(c("watched_at") - c("searched_at")).abs())
    near = near.filter(c("distance") <= P2_WINDOW)
    near = near.sort("distance", "watched_at", "search_id")
    near = near.unique(["query_id", "user_id", "item_id"], keep="first", maintain_order=True)
    place = pl.struct("distance", "watched_at", "item_id").rank("ordinal").over("query_id", "user_id")
    p2 = near.filter(place <= CAP_FEED).with_columns(
        source=pl.lit(32, pl.Int64), query_id_via=pl.lit(None, pl.Int64)
    )
    columns = ("query_id", "item_id", "source", "search_id", "query_id_via", "user_id", "watched_at")
    keys = pl.LazyFrame(dict(zip(("item_id", "right_key"), item_keys(logs), strict=True)))
    theta = pl.scan_parquet(cache / "relevance/*.parquet").rename({"left_key": "query_id"})
    found = pl.concat([p1.select(columns), p2.select(columns)]).join(keys, on="item_id")
    found = found.join(theta, on=["query_id", "right_key"])
    first = c("source") == 64
    alpha = pl.when(first).then(config.reformulation.relevance).otherwise(config.feed.relevance)
    found = found.filter(c("score") > alpha).collect(engine="streaming").lazy()
    added = found.group_by("query_id", "user_id", "item_id").agg(c("source", "score").max())
    added = added.with_columns(key=key)
    order = pl.struct(-c("source"), -c("score"), "key", "item_id").rank("ordinal").over("query_id", "user_id")
    found = found.join(added.filter(order <= CAP_USER), on=["query_id", "user_id", "item_id"], how="semi")
    clicks = shown.filter(c("source") == 8).join(pairs, on=["query_id", "item_id"], how="semi")
    clicks = clicks.select("query_id", "item_id", "source", "search_id")
    evidence = pl.concat([clicks, found.drop("user_id", "right_key")], how="diagonal")
    bits = pl.concat([pairs, found.select("query_id", "item_id", "source")])
    bits = bits.group_by("query_id", "item_id").agg(c("source").bitwise_or())
    label = pl.when(c("source") & 64 > 0).then(5).when(c("source") & 40 > 0).then(4)
    label = label.when(c("source") & 4 > 0).then(3).when(c("source") & 2 > 0).then(2).otherwise(1)
    out.mkdir(parents=True, exist_ok=True)
    evidence.sort("query_id", "item_id", "source", "search_id").sink_parquet(out / "evidence.parquet")
    bits.with_columns(label=label).sort("query_id", "item_id").sink_parquet(out / "samples.parquet")
