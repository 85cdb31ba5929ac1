#!/bin/sh
# JDsearch, whose texts are token ids; one search per user and no clock, so no later day to test on.
set -e
cd "$(dirname "$0")"
python ../make_logs.py jdsearch out/source    # your own files stand here
crops import jdsearch out/source --out out/logs
crops check out/logs out/checked
crops mine out/checked/accepted out/mined --relevance none
crops train out/mined out/model --config ../small.toml
crops index out/model out/checked/accepted --out out/index
