#!/bin/sh
# Figure 7: the learnt temperature over the steps, with search labels only and with all sources.
# On a laptop: SIZE=small SEEDS=1 sh runs/fig7.sh
exec crops reproduce fig7 --size "${SIZE:-base}" --seeds "${SEEDS:-3}" --out "out/reproduce-${SIZE:-base}"
