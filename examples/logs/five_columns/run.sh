#!/bin/sh
# Query, user, time, item and click, and nothing else. map.toml is what `crops import --guess out/source` wrote.
set -e
cd "$(dirname "$0")"
python ../make_logs.py five_columns out/source    # your own files stand here
crops import table out/source --mapping map.toml --out out/logs
crops check out/logs out/checked
crops mine out/checked/accepted out/mined --relevance none
crops train out/mined out/model --config ../small.toml
crops evaluate out/model bm25 --logs out/checked/accepted --samples out/mined --config ../small.toml --relevance none
crops index out/model out/checked/accepted --out out/index
