"""Training data written by hand: tables from lists, and groups back into lists."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops.text import PLAIN
from crops.training import TrainingData
from crops.training.groups import store_groups


def training_data(groups, docs, *, ids=None, query_ids=None, searches=None):
    """Return the data of groups (query text, [(row of docs, label, source), ...]) over document texts."""
    numbers = np.arange(len(groups)) if query_ids is None else np.array(query_ids)
    doc_ids = np.arange(len(docs)) + 1 if ids is None else np.array(ids)
    rows = [(number, *pair) for number, (_, pairs) in zip(numbers, groups, strict=True) for pair in pairs]
    query, doc, label, source = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return TrainingData(
        pa.table(
            {
                "query_id": numbers,
                "query": pa.array([text for text, _ in groups], pa.string()),
                "searches": np.ones(len(groups)) if searches is None else np.array(searches, np.float64),
            }
        ),
        pa.table({"item_id": doc_ids, "text": pa.array(docs, pa.string())}),
        pa.table(
            {
                "query_id": query,
                "item_id": doc_ids[doc],
                "label": label,
                "source": source,
                "weight": np.ones(len(rows)),
            }
        ),
    )


def with_column(data, name, values):
    """Return the data with the first values of a column of its pairs replaced."""
    old = data.pairs[name].to_numpy()
    new = np.concatenate([np.array(values, old.dtype), old[len(values) :]])
    place = data.pairs.column_names.index(name)
    return TrainingData(data.queries, data.docs, data.pairs.set_column(place, name, pa.array(new)))


def first_groups(data, count):
    """Return the first groups; the documents stay."""
    queries = data.queries.slice(0, count)
    return TrainingData(
        queries, data.docs, data.pairs.filter(pc.is_in(data.pairs["query_id"], queries["query_id"]))
    )


def stored(data, folder, lowest=1, beta=0.5, catalogue=None, **options):
    return store_groups(data, folder / "groups", PLAIN, lowest, beta, catalogue=catalogue, **options)


def everything(source):
    """{(query id, query text): sorted [(document text, id, label, source, weight)]} and the searches."""
    texts = [text for part in (*source.query_texts(), *source.doc_texts()) for text in part]
    found, searches = {}, {}
    if source.groups:
        groups = source.read(np.arange(len(source.row_groups)))
        for row in range(len(groups)):
            pairs = slice(groups.offsets[row], groups.offsets[row + 1])
            key = int(groups.query_id[row]), texts[groups.query_text[row]]
            searches[key] = float(groups.searches[row])
            columns = (groups.doc_id, groups.label, groups.source, groups.weight)
            docs = [texts[text] for text in groups.doc_text[pairs]]
            found[key] = sorted(zip(docs, *(column[pairs].tolist() for column in columns), strict=True))
    return found, searches
