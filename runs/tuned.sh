#!/bin/sh
# Every method tuned on two folds of three worlds, then Table 2 on them, as in docs/results-tuned.md: two and a half CPU hours.
exec crops reproduce table2 --size small --seeds 3 --tune --folds 2 --out out/reproduce-tuned --docs docs/results-tuned.md
