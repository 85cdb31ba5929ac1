#!/bin/sh
# Mining on Spark
#
# The same accepted rows and samples, row for row, from logs that one machine cannot hold. It needs Java 17 and
# `pip install 'crops-retrieval[spark]'`.
#
#     sh spark.sh LOGS OUT                                    # two threads of this machine, to try it
#     MASTER=spark://host:7077 MEMORY=8GB sh spark.sh /data/logs /data/mined
#
# LOGS, OUT and the cache of scores (`CACHE`) must be the same folders on every worker, as on NFS or a mounted
# bucket, with the same versions of Python and crops; every worker is asked before the work starts. `MEMORY` is the driver's;
# executors have what the cluster gives them. What Spark does with it: [engine](../docs/engine.md#duckdb-or-spark).
set -eu
export XDG_CACHE_HOME="${CACHE:-$(dirname "$2")/cache}"
crops check "$1" "$2.checked" --engine spark --master "${MASTER:-local[2]}" --memory "${MEMORY:-2GB}"
crops mine "$2.checked/accepted" "$2" --engine spark --master "${MASTER:-local[2]}" --memory "${MEMORY:-2GB}"
