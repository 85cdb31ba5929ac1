"""Daily builds that are killed, and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from days import DAYS, contents, hashed_job, write_days

from crops.engine.daily import mine_daily
from crops.logs import open_logs

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import crops.engine.daily, crops.outputs
from crops.logs import open_logs
from days import DAYS, hashed_job

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

swap = crops.outputs._swap

def rename_once(staging, target):
    if not target.exists():
        return swap(staging, target)
    target.rename(target.with_name(f".{target.name}.{os.getpid()}.old"))
    kill()

job, rebuild = hashed_job(), False
match sys.argv[3]:
    case "scoring": object.__setattr__(job, "relevance", kill)
    case "day": sys.modules["crops.engine.mine"].write_manifest = kill
    case "before window": crops.engine.daily.merge_window = kill
    case "window": crops.engine.daily.write_manifest = kill
    case "between renames":
        crops.outputs._swap, rebuild = rename_once, True
folder = Path(sys.argv[2])
crops.engine.daily.mine_daily(open_logs(folder / "logs"), folder / "out", job, DAYS[:2], rebuild=rebuild)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Logs and a build of two of their days that nothing disturbed; the first of them also alone."""
    folder = tmp_path_factory.mktemp("whole")
    logs = write_days(folder / "logs")
    mine_daily(logs, folder / "first", hashed_job(), DAYS[:1])
    shutil.copytree(folder / "first", folder / "both")
    mine_daily(logs, folder / "both", hashed_job(), DAYS[:2])
    return folder


@pytest.mark.parametrize(
    "point",
    [
        "day",
        "between renames",
        *(pytest.param(point, marks=pytest.mark.verify) for point in ("scoring", "before window", "window")),
    ],
)
def test_killed_and_started_again(tmp_path, whole, point):
    out = tmp_path / "out"
    shutil.copytree(whole / "logs", tmp_path / "logs")
    shutil.copytree(whole / ("both" if point == "between renames" else "first"), out)
    before = contents(out)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path), point]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    if point in ("scoring", "day"):
        assert contents(out) == before  # the day before is still there, and whole
    mine_daily(open_logs(tmp_path / "logs"), out, hashed_job(), DAYS[:2])
    assert contents(out) == contents(whole / "both")
    names = [".lock", *(f"day={day}" for day in DAYS[:2]), "window"]
    assert sorted(path.name for path in out.iterdir()) == names


PRUNED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import crops.engine.daily
from crops.logs import open_logs
from days import DAYS, hashed_job

whole = shutil.rmtree

def half(path, **options):
    if "day=" in Path(path).name:
        (Path(path) / "config.toml").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, **options)

folder = Path(sys.argv[2])
job = hashed_job(daily={"window": 1})
crops.engine.daily.shutil.rmtree = half
crops.engine.daily.merge_window(folder / "out", job.config)
"""


def test_killed_while_an_old_day_goes(tmp_path, whole):
    out = shutil.copytree(whole / "both", tmp_path / "out")
    command = [sys.executable, "-c", PRUNED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    mine_daily(open_logs(whole / "logs"), out, hashed_job(daily={"window": 1}), DAYS[1:2])
    assert sorted(path.name for path in out.iterdir()) == [".lock", f"day={DAYS[1]}", "window"]
