"""A source of positives takes three files, as `examples/extending/source.py` says (in a copy)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from handmade import clicked, read_tables, shown, watched, write_logs

import crops

EXAMPLE = Path(__file__).parents[2] / "examples" / "extending" / "source.py"
MINE = """
import sys
from pathlib import Path
from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.report import insights
from crops.logs import open_logs
folder = Path(sys.argv[1])
config = EngineConfig(sources=("search", "p5"), k=1)
mine(open_logs(folder / "logs"), folder / "mined", config, relevance=None, similarity=None)
print(insights(folder / "mined", owner=True)["disagreements"][-1])
"""


def inserted(file: Path, lines: dict[str, str]) -> None:
    """Add texts to a file, each after a line (for a class with a docstring, after that)."""
    text = file.read_text()
    for line, more in lines.items():
        head, _, tail = text.partition(f"\n{line}\n")
        if tail.lstrip().startswith('"""'):
            doc, _, tail = tail.partition('"""\n\n')
            line += f'\n{doc}"""\n'
        text = f"{head}\n{line}\n{more}\n{tail}"
    file.write_text(text)


def test_three_files_are_a_source(tmp_path):
    package = tmp_path / "source" / "crops"
    data = shutil.ignore_patterns("*.toml", "*.jsonl", "__pycache__")
    shutil.copytree(Path(crops.__file__).parent, package, ignore=data)
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    shutil.copy(EXAMPLE, package / "engine" / "vain.py")
    inserted(package / "labels.py", example.LABELS)
    inserted(package / "config.py", example.SETTINGS)
    settings = (package / "config.py").read_text()
    at = settings.index("class EngineConfig(")
    (package / "config.py").write_text(settings[:at] + example.SECTION + settings[at:])
    searches = [shown(1, 1, "a", 0, 7), clicked(2, 2, "a", 0, 7), shown(3, 3, "a", 500, 7)]
    events = [watched(1, 8, 30), watched(1, 9, 61), watched(2, 8, 30), watched(3, 7, 510), watched(3, 6, 499)]
    write_logs(tmp_path / "logs", searches, events)
    done = subprocess.run(
        [sys.executable, "-c", MINE, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    samples = {
        row["item_id"]: (row["label"], row["sources"]) for row in read_tables(tmp_path / "mined")["samples"]
    }
    assert samples == {7: (4, 8 | 4 | 256), 8: (4, 256)}
    report = json.loads((tmp_path / "mined" / "report.json").read_text())
    assert report["sources"]["p5"] == {"theta": "none", "candidates": 2, "after_relevance": 2, "kept": 2}
    assert report["rescued"] == {"pairs": 0, "3": 0, "2": 0, "1": 0}
    assert "P5: theta = none, candidates are not filtered by relevance" in report["notes"]
    assert "'source': 'p5', 'positives': 2, 'also': {'p0': 1" in done.stdout
