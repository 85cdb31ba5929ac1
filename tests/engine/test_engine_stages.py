"""Stages are there whole or not at all, belong to one build, and are made again where they are damaged."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.engine.stages import Stages, build_key, work_folder
from crops.errors import CropsError


def write(stages: Stages, name: str, key: str, rows: int, counted: int | None = None):
    place = stages.place(name, key)
    written = stages.writing(place)
    written.mkdir(parents=True)
    for part in range(2):
        pq.write_table(pa.table({"x": range(part, rows, 2)}), written / f"part-{part}.parquet")
    stages.keep(written, place, rows if counted is None else counted, "{}")
    return place


def test_a_stage_is_known_by_name_key_and_turn(tmp_path):
    first = Stages(tmp_path / "work", "build")
    places = [
        write(first, "a", "k", 3),
        write(first, "a", "k", 4),
        write(first, "a", "l", 5),
        write(first, "b", "k", 6),
    ]
    assert len(set(places)) == 4
    again = Stages(tmp_path / "work", "build")
    assert [again.place(*asked) for asked in ("ak", "ak", "al", "bk")] == places
    assert all(again.is_there(place) for place in places)
    assert not again.is_there(again.place("a", "k"))
    assert again.taken == 4


def test_what_killed_jobs_and_other_builds_left_goes(tmp_path):
    work = work_folder(tmp_path / "out")
    assert work.parent == tmp_path
    old = write(Stages(work, "old"), "a", "k", 3)
    torn = Stages(work, "new").writing(old)
    torn.mkdir(parents=True)
    assert not old.exists()
    kept = write(Stages(work, "new"), "a", "k", 3)
    Stages(work, "new")
    assert [*work.iterdir()] == [kept.parent]
    assert [*kept.parent.iterdir()] == [kept]


def test_a_damaged_stage_is_no_stage(tmp_path, capsys):
    for damage in ("part", "record", "file"):
        stages = Stages(tmp_path / damage, "build")
        place = write(stages, "a", "k", 100)
        part = place / "part-1.parquet"
        if damage == "part":
            part.write_bytes(part.read_bytes()[:-20])
        else:
            (part if damage == "file" else place / "_stage.json").unlink()
        assert not stages.is_there(place)
        assert not place.exists()


def test_rows_that_are_missed_and_half_written_parts_are_no_stage(tmp_path):
    stages = Stages(tmp_path / "work", "build")
    with pytest.raises(CropsError, match=r"a-[0-9a-f]{16}: 5 of 6 rows arrived in .*nothing is published"):
        write(stages, "a", "k", 5, counted=6)
    place = stages.place("b", "k")
    written = stages.writing(place)
    written.mkdir()
    (written / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(CropsError, match=r"part-0.parquet is half-written .* run the command again"):
        stages.keep(written, place, 1, "{}")
    assert not place.exists()


def test_tables_on_the_way_to_a_stage_are_gone_after_it_and_count_for_nothing(tmp_path):
    stages = Stages(tmp_path / "work", "build")
    with stages.within():
        inner = write(stages, "found", "k", 3)
        with stages.within():
            innermost = write(stages, "found", "k", 3)
        assert inner.exists()
        assert not innermost.exists()
    assert not inner.exists()
    outer = write(stages, "found", "k", 3)
    assert outer.name == inner.name
    assert outer.parent == stages.folder


def test_a_build_is_its_files_and_settings(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for file in (one, two):
        file.write_text("12345")
        os.utime(file, (1, 1))
    key = build_key([one], [two], {"seed": 1})
    assert build_key([one], [two], {"seed": 1}) == key
    assert build_key([two], [one], {"seed": 1}) == key
    others = [build_key([one], [], {"seed": 1}), build_key([one], [two], {"seed": 2})]
    os.utime(one, (1, 2))
    others.append(build_key([one], [two], {"seed": 1}))
    one.write_text("123456")
    os.utime(one, (1, 1))
    others.append(build_key([one], [two], {"seed": 1}))
    assert len({key, *others}) == 5
