"""The commands' functions as the stages of a reproduction."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tomli_w

from crops.cli.evaluate import day_testsets
from crops.cli.mine import mine_logs
from crops.cli.models import load_retriever
from crops.cli.simulate import simulate
from crops.cli.theta import theta
from crops.config import RunConfig
from crops.logs import check
from crops.reproduce.stages import Stages


def simulate_run(out: Path, run: RunConfig) -> None:
    """Simulate the world that resolved settings describe."""
    with tempfile.TemporaryDirectory(prefix="crops-world-") as scratch:
        settings = Path(scratch) / "run.toml"
        settings.write_text(tomli_w.dumps(run.dump()))
        simulate(out, config=settings)


STAGES = Stages(simulate_run, check, mine_logs, day_testsets, load_retriever, theta)
