#!/bin/sh
# User Behavior Insights of OpenSearch, Elasticsearch or Solr; it needs no map.
set -e
cd "$(dirname "$0")"
python ../make_logs.py ubi out/source    # your own files stand here
crops import ubi out/source --out out/logs
crops check out/logs out/checked
crops mine out/checked/accepted out/mined
crops train out/mined out/model --config ../small.toml
crops evaluate out/model bm25 --logs out/checked/accepted --samples out/mined --config ../small.toml
crops index out/model out/checked/accepted --out out/index
