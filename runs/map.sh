#!/bin/sh
# When does it help? The lift of each source over seven dials, as in docs/map.md; it can be stopped and goes on where it was.
exec crops reproduce map --size "${SIZE:-small}" --seeds "${SEEDS:-1}" --out "out/reproduce-${SIZE:-small}" --docs docs/map.md
