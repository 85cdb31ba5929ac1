"""The formats that `crops import` knows."""

from __future__ import annotations

from pathlib import Path

from crops.errors import CropsError, nearest
from crops.logs.datasets import Dataset
from crops.logs.import_report import ImportReport
from crops.logs.importing import import_dataset
from crops.logs.kuaisar import kuaisar
from crops.logs.mapping import Mapping, load_mapping, own_tables
from crops.logs.qilin import qilin
from crops.logs.ubi import ubi

FORMATS = ("kuaisar", "qilin", "ubi", "table")


def import_logs(
    format_: str, source: str | Path, out: str | Path, mapping: str | Path | None = None, memory: str = "2GB"
) -> ImportReport:
    """Import a foreign log as a logs folder; see `crops.logs.importing.import_dataset`.

    Args:
        format_: one of `FORMATS`.
        source: the folder of the source.
        out: the logs folder to write.
        mapping: TOML of the columns; `table` needs one, `ubi` can use one.
        memory: memory limit of DuckDB.

    Raises:
        CropsError: no such format, a mapping that is missing or of no use, or as in `import_dataset`.
    """
    mapping = None if mapping is None else Path(mapping)
    out = Path(out)
    source = Path(source)
    if format_ not in FORMATS:
        raise CropsError(
            f"no such format: {format_}; there are {', '.join(FORMATS)}.{nearest(format_, FORMATS)}"
        )
    if format_ == "table" and mapping is None:
        raise CropsError("own tables need --mapping FILE, a TOML that names their columns and units")
    if format_ in ("kuaisar", "qilin") and mapping is not None:
        raise CropsError(f"{format_} has a mapping of its own; leave --mapping out, or import it as `table`")
    columns = load_mapping(mapping) if mapping else Mapping()
    return import_dataset(
        format_, source, out, lambda scratch: _dataset(format_, source, columns, scratch), memory
    )


def _dataset(format_: str, source: Path, columns: Mapping, scratch: Path) -> Dataset:
    if format_ == "kuaisar":
        return kuaisar(source, scratch)
    if format_ == "qilin":
        return qilin(source, scratch)
    return (ubi if format_ == "ubi" else own_tables)(source, columns, scratch)
