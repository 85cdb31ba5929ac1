#!/bin/sh
# Table 2: CroPS beside BM25, NCE, DPR, ANCE, ADORE+STAR, TriSampler and FS-LR; three worlds of 100,000 items.
# On a laptop: SIZE=small SEEDS=1 sh runs/table2.sh
exec crops reproduce table2 --size "${SIZE:-base}" --seeds "${SEEDS:-3}" --out "out/reproduce-${SIZE:-base}"
