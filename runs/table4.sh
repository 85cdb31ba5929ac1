#!/bin/sh
# Table 4: InfoNCE, Softmax-CE and H-InfoNCE on the same samples, and how fast each converges.
# On a laptop: SIZE=small SEEDS=1 sh runs/table4.sh
exec crops reproduce table4 --size "${SIZE:-base}" --seeds "${SEEDS:-3}" --out "out/reproduce-${SIZE:-base}"
