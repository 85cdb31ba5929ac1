"""The folder of a reproduction: versions, strangers, two at once, what a killed one left, a full disk."""

import errno
import json

import pytest

from crops.errors import CropsError
from crops.outputs import write_text
from crops.reproduce import make
from crops.reproduce.make import naming_full_disk, opened


def test_a_folder_of_another_version_is_refused(tmp_path):
    with opened(tmp_path / "out") as out:
        facts = json.loads((out / "reproduce.json").read_text())
    (out / "reproduce.json").write_text(json.dumps(facts | {"platform": "cpsqa-open-v0+123"}))
    with (
        pytest.raises(CropsError, match=r"made by platform version cpsqa-open-v0\+123.*name another --out"),
        opened(out),
    ):
        pass
    (out / "reproduce.json").write_text(json.dumps(facts | {"results": 0}))
    with pytest.raises(CropsError, match="made by results version 0"), opened(out):
        pass
    (out / "reproduce.json").write_text("{")
    with pytest.raises(CropsError, match="is damaged"), opened(out):
        pass


def test_other_files_are_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CropsError, match=r"did not write \(thesis.tex\)"), opened(tmp_path):
        pass
    with pytest.raises(CropsError, match="is a file"), opened(tmp_path / "thesis.tex"):
        pass


def test_one_at_a_time(tmp_path):
    with opened(tmp_path / "out") as out:
        with pytest.raises(CropsError, match="another `crops reproduce` is at work"), opened(out):
            pass
    with opened(out):
        pass


def test_half_written_folders_of_a_killed_run_are_swept_and_checkpoints_kept(tmp_path):
    with opened(tmp_path / "out") as out:
        for name in (".crops-1.77.tmp", ".crops-1.77.old", ".crops-1.training", "crops-1"):
            (out / "cells" / name).mkdir(parents=True)
        (out / "worlds" / "tiny-0" / ".world.77.tmp").mkdir(parents=True)
    with opened(out):
        assert not any((out / "worlds" / "tiny-0").iterdir())
        assert sorted(path.name for path in (out / "cells").iterdir()) == [".crops-1.training", "crops-1"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_how_to_go_on(tmp_path, number):
    with pytest.raises(CropsError, match="is full.*run the same command again: finished cells are kept"):
        with naming_full_disk(tmp_path):
            raise OSError(number, "No space left on device")
    with pytest.raises(PermissionError), naming_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "denied")


def test_a_text_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "a" / "t.md", "old")

    def fail(path, text, **_):
        path.touch()
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(make.Path, "write_text", fail)
    with pytest.raises(OSError, match="full"):
        write_text(tmp_path / "a" / "t.md", "new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["t.md"]
    assert (tmp_path / "a" / "t.md").read_bytes() == b"old"
