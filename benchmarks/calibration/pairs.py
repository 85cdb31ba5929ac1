"""Judged text pairs from public data sets, for fitting theta's calibrations.

Every function takes the folder that holds the data sets and returns pairs with a split by query: all pairs of
one query (topic, lemma) lie in the same half. Negatives are half hard, half random wherever a set allows it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

STOPWORDS = frozenset(
    "a an and are as at be best by can do does find for from get go how i in information is it its looking m "
    "me my new of on or s the to take want was were what when where which who with would you your".split()
)


@dataclass(frozen=True)
class Pair:
    left: str
    right: str
    relevant: bool
    held_out: bool


def held_out(key: str) -> bool:
    """Half of the queries, by hash: stable under any reordering of the data."""
    return hashlib.sha256(key.encode()).digest()[0] % 2 == 1


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.casefold())) - STOPWORDS


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / name).to_pylist()


def esci(folder: Path, rng: np.random.Generator) -> list[Pair]:
    """Query, product title + description. Positive: grade >= 2, at most 12 a query.

    Negative: as many, half of them (or as many as there are) of grade 0 for the query (hard), the others
    judged for other queries only (random). Grade 1 (complement) is left out.
    """
    texts = {
        d["doc_id"]: f"{d['title']} {d['description'] or ''}".strip()
        for d in read(folder, "esci_mini/docs.parquet")
    }
    judged: dict[str, dict[str, int]] = {}
    for row in read(folder, "esci_mini/qrels.parquet"):
        judged.setdefault(row["query_id"], {})[row["doc_id"]] = row["grade"]
    ids = sorted(texts)
    pairs = []
    for query in read(folder, "esci_mini/queries.parquet"):
        grades = judged.get(query["query_id"], {})
        good = sorted(d for d, g in grades.items() if g >= 2)
        bad = sorted(d for d, g in grades.items() if g == 0)
        good = [good[i] for i in rng.permutation(len(good))[:12]]
        bad = [bad[i] for i in rng.permutation(len(bad))[: len(good) // 2]]
        while len(bad) < len(good):
            other = ids[rng.integers(len(ids))]
            if other not in grades:
                bad.append(other)
        half = held_out(query["query_id"])
        pairs += [Pair(query["text"], texts[d], True, half) for d in good]
        pairs += [Pair(query["text"], texts[d], False, half) for d in bad]
    return pairs


def wordnet(folder: Path, rng: np.random.Generator, lemmas: int = 600) -> list[Pair]:
    """Query: noun + a synonym of one sense (the sense meant). Document: a gloss without its examples.

    Positive: that sense's gloss. Negative: a gloss of the noun from another domain (hard), a gloss of
    another noun (random).
    """
    senses: dict[str, list[dict[str, Any]]] = {}
    for row in read(folder, "wordnet_senses/polysemous.parquet"):
        if row["pos"] == "noun":
            senses.setdefault(row["lemma"], []).append(row)
    names = sorted(lemma for lemma, rows in senses.items() if len({r["lexfile"] for r in rows}) > 1)
    pairs = []
    for index in rng.permutation(len(names)):
        lemma = names[index]
        meant = next((r for r in senses[lemma] if any(s.casefold() != lemma for s in r["synonyms"])), None)
        other = next((r for r in senses[lemma] if meant and r["lexfile"] != meant["lexfile"]), None)
        if meant is None or other is None:
            continue
        synonym = next(s for s in meant["synonyms"] if s.casefold() != lemma)
        stranger = senses[names[rng.integers(len(names))]][0]
        query, half = f"{lemma} {synonym}".replace("_", " "), held_out(lemma)
        pairs += [
            Pair(query, row["gloss"].split('; "')[0], row is meant, half) for row in (meant, other, stranger)
        ]
        if len(pairs) >= 3 * lemmas:
            break
    return pairs


def qulac(folder: Path, rng: np.random.Generator) -> list[Pair]:
    """Topic, facet description. Positive: the topic's facets, of any sense of an ambiguous topic.

    Negative: as many facets of other topics, half of them sharing a content word with the topic or its
    facets (hard), where there is one.
    """
    facets: dict[str, list[str]] = {}
    for row in read(folder, "qulac/facets.parquet"):
        facets.setdefault(row["topic"], []).append(row["facet_desc"].replace("\\", ""))
    everything = [(topic, facet, words(facet)) for topic in sorted(facets) for facet in facets[topic]]
    pairs = []
    for topic, own in facets.items():
        known = words(topic) | frozenset().union(*(words(f) for f in own))
        others = [(f, w) for t, f, w in everything if t != topic and not (words(topic) <= w)]
        close = [f for f, w in others if w & known]
        for number, facet in enumerate(own):
            pool = close if number % 2 == 0 and close else [f for f, _ in others]
            half = held_out(topic)
            pairs += [Pair(topic, facet, True, half), Pair(topic, pool[rng.integers(len(pool))], False, half)]
    return pairs


def mimics(folder: Path, rng: np.random.Generator) -> list[Pair]:
    """Query, refinement as a full query: the query is put before options that lack its words.

    Positive: options rated good, two a query. Negative: as many other queries or refinements of theirs, half
    of them sharing a content word with the query, but at most half of its words (hard), where there is one.
    Two refinements of one query are no pair.
    """
    options: dict[str, set[str]] = {}
    for row in read(folder, "mimics_manual/queries.parquet"):
        for number in range(1, 6):
            option, label = row[f"option_{number}"], row[f"option_label_{number}"]
            if option and label == 2:
                full = option if words(row["query"]) <= words(option) else f"{row['query']} {option}"
                options.setdefault(row["query"], set()).add(full)
    everything = [
        (text, words(text)) for query in sorted(options) for text in (query, *sorted(options[query]))
    ]
    by_word: dict[str, list[int]] = {}
    for index, (_, content) in enumerate(everything):
        for word in sorted(content):
            by_word.setdefault(word, []).append(index)
    pairs = []
    for query, own in options.items():
        content, half = words(query), held_out(query)
        close = sorted(
            {
                i
                for word in content
                for i in by_word[word]
                if 2 * len(content & everything[i][1]) <= len(content)
            }
        )
        far = [i for i in rng.integers(len(everything), size=20).tolist() if not content & everything[i][1]]
        for number, option in enumerate(sorted(own)[:2]):
            pool = close if number % 2 == 0 and close else far
            pairs += [
                Pair(query, option, True, half),
                Pair(query, everything[pool[rng.integers(len(pool))]][0], False, half),
            ]
    return pairs
