#!/bin/sh
# All tables and figures, as in docs/results.md: five worlds of 20,000 items, 90 minutes of a core.
# docs/results-base.md, three of 100,000, half an hour of a core each: SIZE=base SEEDS=3 DOCS=docs/results-base.md sh runs/results.sh
exec crops reproduce all --size "${SIZE:-small}" --seeds "${SEEDS:-5}" --out "out/reproduce-${SIZE:-small}" --docs "${DOCS:-docs/results.md}"
