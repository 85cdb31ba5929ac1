#!/bin/sh
# Every claim under three behaviour models, the null world, a weak and a strong bubble, and over human grades.
# JUDGED is a folder with docs, queries and qrels as Parquet.
out="out/reproduce-${SIZE:-small}"
crops reproduce all --size "${SIZE:-small}" --seeds "${SEEDS:-3}" --worlds all --out "$out"
[ -z "$JUDGED" ] || crops reproduce all --size "${SIZE:-small}" --seeds "${SEEDS:-3}" --worlds judged --judged "$JUDGED" --out "$out"
