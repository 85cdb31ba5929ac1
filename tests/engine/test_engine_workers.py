"""What a worker lacks is said in a sentence, before the work; so is whatever Spark, Java or Python report."""

from __future__ import annotations

import functools
import json
import pickle

import pyarrow as pa
import pytest

from crops.config import RelevanceConfig
from crops.engine import probe
from crops.engine.spark import _check, explain_failure
from crops.errors import CropsError
from crops.relevance import model_hash, scorers


@pytest.fixture
def expected(tmp_path):
    """What a worker must have, and has."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / probe.seen("t")).touch()
    (tmp_path / "rows").write_text("12345")
    return {
        "token": "t",
        "folders": [str(tmp_path / "out")],
        "sizes": {str(tmp_path / "rows"): 5},
        "versions": probe.versions(),
        "identities": pickle.dumps([functools.partial(str, "hash")]),
        "models": ["hash"],
    }


def asked(expected) -> dict:
    (batch,) = probe.probe(iter([pa.record_batch({"id": [1]})]), expected)
    (row,) = batch["found"].to_pylist()
    return json.loads(row)


def test_a_worker_that_has_everything(expected, tmp_path):
    row = asked(expected)
    assert row["fault"] is None
    _check(row, [tmp_path / "out"], "t")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"token": "other"},
            "does not see what the driver wrote into .*out; name a folder that all",
        ),
        ({"folders": ["/nowhere"]}, "does not see what the driver wrote into /nowhere"),
        ({"sizes": {"/nowhere/rows": 5}}, "does not see /nowhere/rows; put the logs where all machines see"),
        ({"sizes": {__file__: 5}}, "sees another .*test_engine_workers.py than the driver"),
        (
            {"versions": {**probe.versions(), "crops": "9.9"}},
            r"has crops \S+, and the driver 9.9; install",
        ),
        (
            {"versions": {**probe.versions(), "pyarrow": "1"}},
            r"has pyarrow \S+, and the driver 1; inst",
        ),
        ({"versions": {**probe.versions(), "python": "3.9"}}, r"has python \S+, and the driver 3.9"),
        ({"models": ["other"]}, "has another model of theta than the driver"),
        (
            {"identities": pickle.dumps([functools.partial(model_hash, "/nowhere")])},
            "has no model of theta at the driver's path .*/nowhere",
        ),
    ],
)
def test_what_a_worker_lacks(expected, tmp_path, changed, message):
    with pytest.raises(CropsError, match=rf"^Spark's worker \S+ {message}"):
        _check(asked(expected | changed), [tmp_path / "out"], "t")


def test_a_worker_without_crops(expected, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "PACKAGES", {"crops": "no-such-package"})
    wanted = expected | {"versions": {**probe.versions(), "crops": "1.2"}}
    with pytest.raises(CropsError, match=r"has no crops in its Python \(.*install no-such-package 1.2 there"):
        _check(asked(wanted), [tmp_path / "out"], "t")


def test_a_driver_that_does_not_see_what_the_worker_wrote(expected, tmp_path):
    row = asked(expected)
    for file in (tmp_path / "out").glob(".seen-t-*"):
        file.unlink()
    with pytest.raises(CropsError, match=r"the driver does not see what Spark's worker \S+ wrote into .*out"):
        _check(row, [tmp_path / "out"], "t")


def test_the_scorers_say_which_model_they_read():
    relevance, similarity = scorers(RelevanceConfig())
    assert relevance.identity() == similarity.identity()
    assert len(relevance.identity()) == 64
    assert len(pickle.dumps(relevance.identity)) < 1_000  # not the vectors that it has computed


JAVA = """An error occurred while calling o91.localCheckpoint.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 2.0 failed 4 times,
most recent failure: Lost task 0.3 in stage 2.0 (TID 9): java.io.FileNotFoundException: x
\tat org.apache.spark.Foo.bar(Foo.scala:12)
Driver stacktrace:
Caused by: java.io.FileNotFoundException: File file:/logs/items.parquet does not exist
\tat org.apache.spark.Foo.baz(Foo.scala:13)
"""
PYTHON = """org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/x/worker.py", line 1, in main
{}

\tat org.apache.spark.api.python.BasePythonRunner.handlePythonException(PythonRunner.scala:1)
"""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (JAVA, "the Spark job failed: FileNotFoundException: File file:/logs/items.parquet does not exist"),
        (
            PYTHON.format("ModuleNotFoundError: No module named 'crops'"),
            "the Spark job failed: a worker's Python has no module crops; install it there, or set "
            "PYSPARK_PYTHON to a Python that has it",
        ),
        (PYTHON.format("ValueError: bad row"), "the Spark job failed: ValueError: bad row"),
        (PYTHON.format("crops.errors.CropsError: theta broke"), "theta broke"),
        ("Answer from Java side is empty", "the Spark job failed: Answer from Java side is empty"),
        ("", "the Spark job failed: nothing was said"),
        ("x" * 2_000, f"the Spark job failed: {'x' * 400}"),
    ],
)
def test_failures_are_sentences(text, sentence):
    assert explain_failure(text) == sentence
    assert "\n" not in sentence
