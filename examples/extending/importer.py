"""An importer of one's own: the logs of a web shop, products.csv and results.csv, in one file.

    crops import examples/extending/importer.py:SHOP FOLDER --out LOGS

An importer names the columns to read and says which SQL makes the contract's columns of them. The rest is
the same for every format: ids become numbers, and rows that cannot be mapped go aside with the reason. To
ship one with crops, add it to `IMPORTERS` in crops/logs/importing.py.
"""

from pathlib import Path

from crops.logs import Dataset, Importer, MappedTable
from crops.logs.mapping import MappingFile, Value, flag, identifier, text, time
from crops.logs.sources import find_files, read_sql
from crops.schema import ITEMS, SEARCH_IMPRESSIONS


def shop(folder: Path, _: MappingFile, scratch: Path) -> Dataset:
    """Return the mapping of products(sku, name) and results(session, visitor, started, term, sku, bought)."""

    def rows(file: str, *columns: str) -> str:
        return read_sql(find_files(folder, file), {name: name for name in columns}, scratch)

    products = {"item_id": identifier("sku"), "ocr_cover": text("name")}
    results = {
        "search_id": identifier("session"),
        "user_id": identifier("visitor"),
        "searched_at": time("started", "iso", offset_minutes=60),
        "query": text("term"),
        "item_id": identifier("sku"),
        "stage": Value("'exposed'"),
        "clicked": flag("bought"),
    }
    return Dataset(
        (
            MappedTable(ITEMS, rows("products.csv", "sku", "name"), products),
            MappedTable(
                SEARCH_IMPRESSIONS,
                rows("results.csv", "session", "visitor", "started", "term", "sku", "bought"),
                results,
                refused={"robot": "visitor = 'robot'"},
            ),
        ),
        notes=("a purchase counts as a click: the shop logs no others",),
    )


SHOP = Importer("shop", shop)
