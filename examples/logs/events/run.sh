#!/bin/sh
# One table of events, as web analytics log them; only the search has the query. map.toml is what `crops import --guess out/source` wrote.
set -e
cd "$(dirname "$0")"
python ../make_logs.py events out/source    # your own files stand here
crops import table out/source --mapping map.toml --out out/logs
crops check out/logs out/checked
crops mine out/checked/accepted out/mined
crops train out/mined out/model --config ../small.toml
crops evaluate out/model bm25 --logs out/checked/accepted --samples out/mined --config ../small.toml
crops index out/model out/checked/accepted --out out/index
