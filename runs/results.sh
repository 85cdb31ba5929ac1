#!/bin/sh
# All tables and figures, as in docs/results.md: three worlds of 20,000 items.
# docs/results-base.md, three of 100,000, half an hour of a core each: SIZE=base DOCS=docs/results-base.md sh runs/results.sh
exec crops reproduce all --size "${SIZE:-small}" --seeds "${SEEDS:-3}" --out "out/reproduce-${SIZE:-small}" --docs "${DOCS:-docs/results.md}"
