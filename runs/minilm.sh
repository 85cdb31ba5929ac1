#!/bin/sh
# Table 3 with a transformer: MiniLM's six layers, trained for a short while, as in docs/results-minilm.md.
exec crops reproduce table3 --size "${SIZE:-demo}" --seeds "${SEEDS:-1}" --encoder minilm --config runs/minilm.toml --out out/reproduce-minilm --docs docs/results-minilm.md
