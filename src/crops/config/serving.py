"""Settings of the server."""

from __future__ import annotations

from pydantic import Field

from crops.config.section import Section


class ServingConfig(Section):
    """The server: what it listens on, what it refuses, what it says."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every address of the machine."""
    port: int = Field(8000, ge=0, le=65535)
    """0 takes a free one."""
    max_k: int = Field(1000, ge=1)
    """Most results of one request; a page shows at most 50."""
    max_query_chars: int = Field(1000, ge=1)
    """Longest query; what is longer is refused, not cut."""
    max_header_bytes: int = Field(32_768, ge=1024)
    """Request line and headers together; more is refused (431)."""
    max_body_bytes: int = Field(65_536, ge=1024)
    max_batch: int = Field(32, ge=1)
    """Searches that are encoded and searched together; a batch takes what waits and never waits for more."""
    max_requests: int = Field(128, ge=1)
    """Requests under way; more are refused (503)."""
    max_connections: int = Field(500, ge=1)
    """Open connections; more are refused (503)."""
    max_wait_s: float = Field(1.0, gt=0)
    """A request that would wait longer than this for its turn is refused (503); keep it below `timeout_s`."""
    timeout_s: float = Field(2.0, gt=0)
    """A request that is not answered in this time from its arrival at the machine is given up (504)."""
    read_timeout_s: float = Field(5.0, gt=0)
    """A client must have sent its request in this time (408), and must go on reading its answer."""
    log_queries: bool = False
    """Whether the log holds the queries: they are personal data."""
    reload_s: float = Field(2.0, gt=0)
    """Seconds between two looks for a new version of the index."""
    grace_s: float = Field(10.0, gt=0)
    """How long requests under way may take when the server is stopped; then they are cut off."""
    torch_threads: int | None = Field(None, ge=1)
    """Threads of the encoder; what torch chooses when absent."""
    shown_users: int | None = Field(None, ge=1)
    """Queries and trails of at least this many users are told; engine.k of the mining when absent."""
    evidence_queries: int = Field(20_000, ge=1)
    """Training queries that evidence is looked up among: the most searched ones."""
