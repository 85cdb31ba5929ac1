"""The built distribution: a wheel holds everything that the package reads, and runs without the checkout."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist of the tracked files, and the wheel that is built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    source = out / "source"
    source.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in files.split("\0")[:-1]:
        if name.startswith("src/") or "/" not in name:
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    for what in ("build_sdist", "build_wheel"):
        done = subprocess.run(
            [sys.executable, "-c", build, what, str(out)], cwd=source, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        if what == "build_sdist":
            with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
                archive.extractall(out, filter="data")
            source = next(out.glob("crops_retrieval-*/"))
    return out


def test_the_wheel_holds_every_file_of_the_package(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("crops/")}
        metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    package = ROOT / "src" / "crops"
    files = {
        f"crops/{file.relative_to(package)}"
        for file in package.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert held == files
    assert "crops/py.typed" in held
    assert "Name: crops-retrieval\n" in metadata


@pytest.mark.parametrize("command", ["check", pytest.param("simulate", marks=pytest.mark.verify)])
def test_the_commands_run_from_the_wheel(built, write_logs, tmp_path, command):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    run = "import sys; sys.path.insert(0, sys.argv.pop(1)); from crops.cli import main; main()"
    options = {
        "check": [str(write_logs(tmp_path / "logs")), str(tmp_path / "checked")],
        "simulate": [str(tmp_path / "world"), "--size", "tiny"],
    }
    for arguments in (["--version"], [command, *options[command]]):
        line = [sys.executable, "-c", run, str(tmp_path / "installed"), *arguments]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
