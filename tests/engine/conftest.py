"""One Spark for the tests of a worker."""

import os

import pytest

from crops.engine.spark import SparkBackend

FOR_FEW_ROWS = {
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.codegen.wholeStage": "false",  # compiling takes longer than these rows
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.autoBroadcastJoinThreshold": "10MB",
}


@pytest.fixture(scope="session")
def started():
    """One Spark for all tests: every job would start its own."""
    # What lives for seconds is not worth the better compiler.
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    backend = SparkBackend("local[2]", "1GB")
    yield backend._spark
    backend._spark.stop()


@pytest.fixture
def session(started, monkeypatch):
    """The Spark with settings under which small jobs are fast, which a job would otherwise set anew."""
    usual = {name: started.conf.get(name, None) for name in FOR_FEW_ROWS}
    for name, value in FOR_FEW_ROWS.items():
        started.conf.set(name, value)
    monkeypatch.setattr("crops.engine.spark._session", lambda master, memory: started)
    yield
    for name, value in usual.items():
        if value is None:
            started.conf.unset(name)
        else:
            started.conf.set(name, value)
