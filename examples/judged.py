"""Graded judgements: any documents, queries and qrels.

Train and test on grades that people gave, without a log. SRC is a collection as BEIR and many others publish
it: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and `qrels/*.tsv` (query,
document, grade, below a header). It becomes three Parquet files, and `crops demo --judged` compares BM25, the
untrained encoders and two losses on it: InfoNCE, which knows only relevant or not, and H-InfoNCE, which knows
grades. Each query is tested by a model that has not seen it (five folds), so 100 queries are enough to begin
with.

    python judged.py SRC OUT LOWEST [CONFIG]

LOWEST is the lowest grade that counts as relevant, CONFIG a TOML of [settings](../docs/training.md). The
comparison is OUT/demo/report.html. Rankings of other systems, as TREC files, are compared by `crops evaluate
RUN RUN --qrels QRELS`.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.json as json
import pyarrow.parquet as pq

import crops

source, out, lowest = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
names = ["query_id", "doc_id", "grade"]
typed = csv.ConvertOptions(column_types=dict(zip(names, [pa.string(), pa.string(), pa.int64()], strict=True)))
read = csv.ReadOptions(column_names=names, skip_rows=1)
tables = {
    "docs": json.read_json(source / "corpus.jsonl").rename_columns({"_id": "doc_id"}),
    "queries": json.read_json(source / "queries.jsonl").rename_columns({"_id": "query_id"}),
    "qrels": pa.concat_tables(
        csv.read_csv(file, read, csv.ParseOptions(delimiter="\t"), typed)
        for file in sorted((source / "qrels").glob("*.tsv"))
    ),
}
(out / "judged").mkdir(parents=True, exist_ok=True)
for name, table in tables.items():
    pq.write_table(table, out / "judged" / f"{name}.parquet")
config = sys.argv[4] if len(sys.argv) > 4 else None
crops.demo(judged=out / "judged", positive_label=lowest, out=out / "demo", config=config)
