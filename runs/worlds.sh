#!/bin/sh
# Every claim under other behaviour models, in the null world, and over human grades, as in docs/results-worlds.md (SEEDS=1
# WORLDS=null,pbm,dcm) and docs/results-judged.md. JUDGED is a folder with docs, queries and qrels as Parquet.
out="out/reproduce-${SIZE:-small}"
crops reproduce all --size "${SIZE:-small}" --seeds "${SEEDS:-3}" --worlds "${WORLDS:-all}" --out "$out" --docs docs/results-worlds.md
[ -z "$JUDGED" ] || crops reproduce all --size "${SIZE:-small}" --seeds "${SEEDS:-3}" --worlds judged --judged "$JUDGED" --out "$out" --docs docs/results-judged.md
