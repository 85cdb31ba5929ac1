#!/bin/sh
# Everything in docs/results.md: all tables and figures, three worlds of 20,000 items.
exec crops reproduce all --size "${SIZE:-small}" --seeds "${SEEDS:-3}" --out "out/reproduce-${SIZE:-small}" --docs docs/results.md
