"""Seconds of experiment days on a platform of a given size, beside the platform's own day without arms.

Training is apart: each arm serves an untrained static encoder, which costs what a trained one does. The A/A
layer runs too. Rounds are days: what the platform remembers grows, and with it the cost of a day.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from crops.config import PlatformConfig
from crops.online.experiment import A_A, Trial, in_own_layer, live_through, open_world, route_traffic
from crops.pipeline import BM25, load_retriever
from crops.platform import SIZES, build_platform, simulate_day
from crops.simulation import Start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--arms", type=int, default=2, help="arms beside each other, 10 %% of the users each")
    parser.add_argument(
        "--rival", action="store_true", help="time the platform's own day before each day too"
    )
    options = parser.parse_args()
    platform = build_platform(PlatformConfig(size=options.size, days=max(4, options.days + 2)), 0)
    texts = platform.world.corpus.document_texts()
    ids = np.arange(1, len(texts) + 1)
    encoders = [load_retriever("static", ids, texts) for _ in range(options.arms + 1)]
    deployed = {"bm25": load_retriever(BM25, ids, texts), "dense": encoders[0]}
    sessions = SIZES[options.size].sessions
    for day in range(2):
        simulate_day(platform, day, sessions, deployed)
    start = Start(platform, deployed, 2, sessions)
    names = [f"arm{i}" for i in range(options.arms)]
    arms = {name: {"dense": encoder} for name, encoder in zip(names, encoders[1:], strict=True)}
    trials = [
        Trial(in_own_layer("dense", names, 0.1, start), arms),
        Trial(in_own_layer(A_A, ("a", "b"), 0.1, start), {}),
    ]
    traffic = route_traffic(deployed, trials, start.users)
    print("day | wall s | CPU s | CPU s of the platform's own day")
    total = np.zeros(2)
    with tempfile.TemporaryDirectory() as scratch:
        open_world(Path(scratch), start.platform)
        platform = start.fork()
        for day in range(2, 2 + options.days):
            own = _own_day(start, platform, day) if options.rival else float("nan")
            wall, cpu = time.perf_counter(), time.process_time()
            live_through(Path(scratch), platform, day, sessions, traffic)
            spent = np.array([time.perf_counter() - wall, time.process_time() - cpu])
            total += spent
            print(f"{day - 1} | {spent[0]:.1f} | {spent[1]:.1f} | {own:.1f}", flush=True)
    print(f"all | {total[0]:.0f} | {total[1]:.0f} |")


def _own_day(start: Start, platform, day: int) -> float:
    """CPU seconds of `simulate_day`, one way for everybody, on a copy."""
    copy = replace(start, platform=platform).fork()
    begin = time.process_time()
    simulate_day(copy, day, start.sessions, start.deployed)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
