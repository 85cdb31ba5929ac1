#!/bin/sh
# Table 3 in a world of edition v2, three seeds, as in docs/results-v2.md: 45 CPU minutes.
exec crops reproduce table3 --size small --seeds 3 --worlds v2 --out out/reproduce-small --docs docs/results-v2.md
