"""Outputs appear whole or not at all: a run fails or is killed, two meet, a place cannot be written."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import crops
from crops import outputs
from crops.errors import CropsError
from crops.outputs import Scratch, publish, write_manifest

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_outputs

steps, fatal = 0, int(sys.argv[3])

def counted(real):
    def step(*args, **options):
        global steps
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return real(*args, **options)
    return step

if sys.argv[4] == "rename":
    test_outputs.outputs._exchange = lambda *_: False  # as on a disk that cannot
    Path.rename, Path.write_text = counted(Path.rename), counted(Path.write_text)
else:
    test_outputs.outputs.shutil.rmtree = counted(test_outputs.outputs.shutil.rmtree)
test_outputs.write(Path(sys.argv[2]) / "out", "two")
"""


def write(target, text="one", command="mine"):
    with publish(target, command) as staging:
        (staging / "data.txt").write_text(text)
        write_manifest(staging, command, config={"seed": 1}, seconds={"work": 0.1})


def test_an_output_appears_whole_and_replaces_its_like(tmp_path):
    write(tmp_path / "out")
    write(tmp_path / "out", text="two")
    assert (tmp_path / "out" / "data.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["command"], manifest["seed"], manifest["seconds"]) == ("mine", 1, {"work": 0.1})


@pytest.mark.parametrize(
    ("fault", "told", "message"),
    [
        (ValueError("wrong"), ValueError, "^wrong$"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(28, "No space left on device"), CropsError, "No space left on device; free disk space"),
    ],
)
@pytest.mark.parametrize("moved", [False, True])
def test_a_failed_output_leaves_the_old_one(tmp_path, fault, told, message, moved):
    write(tmp_path / "out")
    if moved:  # as a kill between two renames leaves it
        (tmp_path / "out").rename(tmp_path / f".out.{'0f' * 8}.old")

    def fail() -> None:
        with publish(tmp_path / "out", "mine") as staging:
            (staging / "data.txt").write_text("half")
            raise fault

    with pytest.raises(told, match=message):
        fail()
    assert (tmp_path / "out" / "data.txt").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_of_others_is_overwritten(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "mounted")
    write(tmp_path / "world", command="simulate")
    for place, message in (
        (tmp_path / "mine", "did not write"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "world", "output of `crops simulate`"),
        (tmp_path / "mounted", "mounted is a mount point.*name a folder inside"),
        (Path("/proc/out"), "/proc/out cannot be written"),
        (Path("/proc/version/out"), "cannot be written"),
    ):
        with pytest.raises(CropsError, match=message):
            write(place)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    write(tmp_path / "mounted" / "inside")


def kill(folder, step, how):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder), str(step), how]
    assert subprocess.run(command).returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", range(5))
def test_what_a_kill_left_is_put_right_by_the_next_run(tmp_path, step):
    """Killed before each of the three files is written, and before each of the two renames."""
    write(tmp_path / "out")
    kill(tmp_path, step, "rename")
    assert len(list(tmp_path.iterdir())) > 1
    with publish(tmp_path / "out", "mine"):
        assert (tmp_path / "out" / "data.txt").read_text() == "one"
        assert len(list(tmp_path.iterdir())) == 3  # the output, the lock, and what is being written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_after_the_exchange_leaves_the_new_output(tmp_path):
    write(tmp_path / "out")
    kill(tmp_path, 0, "exchange")
    assert (tmp_path / "out" / "data.txt").read_text() == "two"
    (left,) = (path for path in tmp_path.iterdir() if path.name.endswith(".tmp"))
    assert (left / "data.txt").read_text() == "one"
    write(tmp_path / "out", "three")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_reader_always_finds_the_old_output_or_the_new_one(tmp_path):
    write(tmp_path / "out", "0")
    if not outputs._exchange(*((tmp_path / name).mkdir() or tmp_path / name for name in "ab")):
        pytest.skip("this disk cannot exchange names")
    found, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            found.append(int((tmp_path / "out" / "data.txt").read_text()))

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for number in range(1, 60):
            write(tmp_path / "out", str(number))
        done.set()
        reading.result()  # a missing file would be raised here
    assert found == sorted(found)
    assert found[-1] > 0


def test_two_processes_of_one_number_do_not_touch_each_others_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers
    with publish(tmp_path / "out", "mine") as first:
        (first / "data.txt").write_text("first")
        with pytest.raises(CropsError, match="another process writes to .*out; wait"):
            write(tmp_path / "out", "second")
        write(tmp_path / "out.b", "alike")  # a name that begins alike is another output
        write_manifest(first, "mine", config={}, seconds={})
    assert (tmp_path / "out" / "data.txt").read_text() == "first"
    write(tmp_path / "out", "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.b"]


def test_a_link_goes_on_naming_the_output(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    for text in ("one", "two"):
        write(tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "out" / "data.txt").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


def test_addresses_of_other_stores_are_refused(tmp_path, monkeypatch, write_logs):
    monkeypatch.chdir(tmp_path)
    logs = write_logs(tmp_path / "logs")
    for address in ("s3://bucket/out", "gs://b/o", "hdfs://n/o", "file:///tmp/o", "abfss://c@a/o"):
        for call in (
            lambda address: write(address),
            lambda address: crops.check(logs, address),
            lambda address: crops.check(Path(address), tmp_path / "checked"),
            lambda address: crops.mine(logs, address, relevance="none"),
        ):
            with pytest.raises(CropsError, match="is no path of this machine"):
                call(address)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


SPILLING = """
import os, signal, sys
from crops.outputs import Scratch
folder = Scratch("crops-test-")
print(folder.name, flush=True)
if sys.argv[1] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def test_scratch_folders_of_killed_processes_go_and_those_in_use_stay(tmp_path, monkeypatch):
    def start(fate):
        command = [sys.executable, "-c", SPILLING, fate]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, **pipes)
        return process, Path(process.stdout.readline().strip())

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(outputs, "_FRESH_S", -1)
    killed, left = start("die")
    killed.wait()
    living, used = start("live")
    assert left.is_dir()
    with Scratch("crops-test-") as own:
        assert sorted(tmp_path.iterdir()) == sorted([used, Path(own)])
    living.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_not_taken_for_a_file(tmp_path):
    (tmp_path / "samples.txt").touch()
    with pytest.raises(CropsError, match=r"no manifest.json in it\)$"):
        outputs.read_manifest(tmp_path / "samples", "mine")
    (tmp_path / "samples-1").mkdir()
    with pytest.raises(CropsError, match=r"Did you mean '.*/samples-1'\?$"):
        outputs.read_manifest(tmp_path / "samples", "mine")
