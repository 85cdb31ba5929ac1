#!/bin/sh
# Figure 6: how often clicks, P1, P2 and P3 are right, by truth, before theta and after it.
# On a laptop: SIZE=small SEEDS=1 sh runs/fig6.sh
exec crops reproduce fig6 --size "${SIZE:-base}" --seeds "${SEEDS:-3}" --out "out/reproduce-${SIZE:-base}"
