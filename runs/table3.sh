#!/bin/sh
# Table 3: what P1, P2 and P3 add to the stages of search, binary labels, and P1 at the label of a click.
# On a laptop: SIZE=small SEEDS=1 sh runs/table3.sh
exec crops reproduce table3 --size "${SIZE:-base}" --seeds "${SEEDS:-3}" --out "out/reproduce-${SIZE:-base}"
