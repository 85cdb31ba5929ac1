"""An importer in a file of its own (`examples/extending/importer.py`) runs like those of the package."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from crops.cli.app import app
from crops.errors import CropsError
from crops.logs import check, import_logs

EXAMPLE = Path(__file__).parents[2] / "examples" / "extending" / "importer.py"


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "products.csv").write_text("sku,name\nA7,red kettle\nB2,blue kettle\n")
    (folder / "results.csv").write_text(
        "session,visitor,started,term,sku,bought\n"
        "s1,anna,2026-01-05 12:00:00,kettle,A7,1\n"
        "s1,anna,2026-01-05 12:00:00,kettle,B2,0\n"
        "s2,robot,2026-01-05 12:00:01,kettle,B2,0\n"
    )
    return folder


def test_one_file_is_an_importer(shop, tmp_path):
    out = tmp_path / "logs"
    result = CliRunner().invoke(app, ["import", f"{EXAMPLE}:SHOP", str(shop), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (day,) = (out / "search_impressions").glob("day=2026-01-05/*.parquet")
    rows = pq.read_table(day, partitioning=None).to_pylist()
    assert [(row["query"], row["clicked"]) for row in rows] == [("kettle", True), ("kettle", False)]
    assert {row["searched_at"] for row in rows} == {1_767_610_800_000_000}  # 11:00 UTC
    (rejected,) = pq.read_table(out / "rejects/search_impressions.parquet")["reasons"].to_pylist()
    assert rejected == ["robot"]
    assert check(out).tables["search_impressions"].accepted == 2


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (f"{EXAMPLE}:SHOPS", "SHOPS cannot be loaded: .*SHOPS"),
        ("none.py:SHOP", "none.py:SHOP cannot be loaded"),
        (f"{EXAMPLE}:shop", "importer.py:shop is no importer; make it a crops.logs.Importer"),
        ("kuaisra", r"no such format: kuaisra; there are kuaisar, qilin, ubi, table, or FILE.py.*kuaisar"),
    ],
)
def test_what_is_no_importer_is_named(shop, tmp_path, name, fault):
    with pytest.raises(CropsError, match=fault):
        import_logs(name, shop, tmp_path / "logs")
