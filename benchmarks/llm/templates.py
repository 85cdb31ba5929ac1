"""What a prompt template brings with a model: valid answers, why others were refused, tokens and seconds.

    python benchmarks/llm/templates.py zh --base-url http://127.0.0.1:8000/v1 --model NAME [--out zh.jsonl]

`en` and `en2` are asked for queries of the packaged documents, with their exemplars (every n-th, so that all
frequencies are there); `zh` for those of queries-zh.jsonl, which were made up for this. The documents stay in
--out, to be read: the guards look for patterns, not for sense.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import statistics
from pathlib import Path

from crops.llm import Endpoint, Exemplar, Request, generate, load_prompt
from crops.llm.batch import read_rows
from crops.llm.prompt import FIELDS, MIN_USERS


def requests(template: str, most: int) -> list[Request]:
    if template == "zh":
        rows = list(read_rows(Path(__file__).parent / "queries-zh.jsonl"))
        found = [(row["query"], row) for row in rows]
    else:
        packaged = importlib.resources.files("crops.llm") / "data" / "documents.jsonl"
        rows = [json.loads(line) for line in packaged.read_text().splitlines()]
        found = [(row["query"], row["exemplar"]) for row in rows]
    spread = found[:: max(1, len(found) // most)][:most]
    return [
        Request(query, MIN_USERS, Exemplar(place, {field: texts.get(field, "") for field in FIELDS}))
        for place, (query, texts) in enumerate(spread, 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("template", choices=("en", "en2", "zh"))
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--queries", type=int, default=40, help="most queries (default 40)")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or Path(f"{arguments.template}.jsonl")
    if out.exists():
        parser.error(f"{out} is there already; name another --out")
    asked = requests(arguments.template, arguments.queries)
    endpoint = Endpoint(arguments.base_url, arguments.model, concurrency=arguments.concurrency)
    counts = generate(asked, load_prompt(arguments.template), endpoint, out)
    rows = list(read_rows(out))
    share = 100 * len(rows) / len(asked)
    print(f"{arguments.template}: {len(asked)} queries, {len(rows)} valid ({share:.0f} %)")
    for name, count in counts.items():
        if name.startswith("refused"):
            print(f"  {name} {count}")
    if rows:
        tokens, seconds = (statistics.median(row[name] for row in rows) for name in ("tokens", "seconds"))
        print(f"  medians of valid ones: {tokens:.0f} tokens written, {seconds:.1f} s")


if __name__ == "__main__":
    main()
