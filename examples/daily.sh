#!/bin/sh
# A pipeline for every day: cron
#
# Each night the new day joins the logs, the days before it are mined and trained on, and the new day is the test. The
# model is put in service unless it finds significantly less than the one in use; a server of `index` swaps
# while it answers.
#
#     sh daily.sh all 2026-01-07                              # or one step: import, check, mine, train, test, serve
#     30 2 * * * cd /srv/search && sh daily.sh all "$(date -u -d yesterday +\%F)" >>daily.log 2>&1
#
# It runs in a folder with `dump/DAY/`, one folder of raw files a day, and a `map.toml` ([own logs](../docs/own-logs.md)).
# Begin with the second day that you have, after `sh daily.sh import` of the first. Each step may be run again
# after a kill: a day that is there is replaced, a finished one is not mined again, a training resumes.
# `salt` numbers the users: keep it, and keep it secret. `run.toml` holds your settings, if you have any. Needs GNU date.
set -eu
STEP=$1 DAY=$2 MODEL=models/$2
BEFORE=$(date -u -d "$DAY - 1 day" +%F)
touch run.toml

run() {
  case $1 in
  import) crops import table "dump/$DAY" --mapping map.toml --out logs --salt salt --replace-days ;;
  check) crops check logs checked --max-rejected 5% ;;
  mine) crops mine checked/accepted mined --daily --day "$BEFORE" --config run.toml ;;
  train) crops train mined/window "$MODEL" --config run.toml ;;
  test)
    if [ -e models/current ]; then set -- --against models/current; else set -- bm25; fi
    crops evaluate "$MODEL" "$@" --logs checked/accepted --day "$DAY" --samples mined/window --out "tests/$DAY" \
      --config run.toml
    ;;
  serve)
    crops index "$MODEL" checked/accepted --out index --config run.toml
    ln -sfn "$DAY" models/current
    ;;
  *) echo "no step $1" >&2 && exit 2 ;;
  esac
}

mkdir -p models
if [ "$STEP" = all ]; then
  for one in import check mine train test serve; do run "$one"; done
else
  run "$STEP"
fi
