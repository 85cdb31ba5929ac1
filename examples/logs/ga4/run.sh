#!/bin/sh
# Google Analytics 4, events as BigQuery exports them; change its map where your site has other names.
set -e
cd "$(dirname "$0")"
python ../make_logs.py ga4 out/source    # your own files stand here
crops import ga4 out/source --out out/logs
crops check out/logs out/checked
crops mine out/checked/accepted out/mined
crops train out/mined out/model --config ../small.toml
crops evaluate out/model bm25 --logs out/checked/accepted --samples out/mined --config ../small.toml
crops index out/model out/checked/accepted --out out/index
