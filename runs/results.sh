#!/bin/sh
# All tables and figures, as in docs/results.md: three worlds of 20,000 items.
# docs/results-base.md, one world of 100,000: SIZE=base SEEDS=0, DOCS=docs/results-base.md sh runs/results.sh
exec crops reproduce all --size "${SIZE:-small}" --seeds "${SEEDS:-3}" --out "out/reproduce-${SIZE:-small}" --docs "${DOCS:-docs/results.md}"
