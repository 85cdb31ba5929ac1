"""An A/B test in your own logs.

Which arm has more searches with a click, more long plays, fewer searches that are worded again? It takes
imported logs and a table of who was in which arm; where your log has a column for that, map it as `arm` and
run `crops analyse` alone.

    python ab_test.py LOGS SALT ARMS.csv OUT CONTROL TREATMENT

LOGS was imported with `--salt SALT`, so that users are found by their own ids. ARMS.csv has the columns
`user_id`, `arm` and `since`, a user's first day in it; days before that make the tests sharper.
OUT/analysis/report.html begins with the sample ratio: if an arm lacks users that it should have, nothing
below counts. Then each effect with its 95 % interval, and a verdict that is corrected for the number of
metrics ([how to read it](../docs/online-metrics.md#how-to-read-the-tables)). Before an experiment, `crops
power LOGS --share 0.1 --effect 0.01` says what it could see. Needs `pip install 'crops-retrieval[online]'`.
"""

import csv
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import crops
from crops.ids import read_salt, user_number

logs, salt_file, arms_file, out = map(Path, sys.argv[1:5])
control, treatment = sys.argv[5:7]
salt, _ = read_salt(salt_file)
with arms_file.open() as file:
    arms = {user_number(row["user_id"], salt): (row["since"], row["arm"]) for row in csv.DictReader(file)}
shutil.copytree(logs, out / "logs")
for path in sorted((out / "logs" / "search_impressions").glob("day=*/*.parquet")):
    day, table = path.parent.name.removeprefix("day="), pq.ParquetFile(path).read()
    found = [arms.get(user, ("", None)) for user in table["user_id"].to_pylist()]
    arm = pa.array([arm if since <= day else None for since, arm in found], pa.string())
    if "arm" in table.column_names:
        table = table.drop_columns("arm")
    pq.write_table(table.append_column("arm", arm), path)
crops.analyse(out / "logs", control=control, treatment=[treatment], out=out / "analysis")
