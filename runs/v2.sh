#!/bin/sh
# Table 3 in a world of edition v2, one seed, as in docs/results-v2.md: 20 CPU minutes.
exec crops reproduce table3 --size small --seeds 1 --worlds v2 --out out/reproduce-small --docs docs/results-v2.md
