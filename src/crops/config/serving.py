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
    """Most results of one request."""
    max_query_chars: int = Field(1000, ge=1)
    """Longest query; what is longer is refused, not cut."""
    max_body_bytes: int = Field(65_536, ge=1024)
    max_batch: int = Field(32, ge=1)
    """Searches that are encoded and searched together; a batch takes what waits and never waits for more."""
    max_waiting: int = Field(128, ge=1)
    """Searches that may wait for their batch; more are refused (503)."""
    max_wait_s: float = Field(1.0, gt=0)
    """A search that has waited this long for its batch is refused (503); keep it below `timeout_s`."""
    max_connections: int = Field(1000, ge=1)
    """Open connections and requests under way; more are refused (503)."""
    timeout_s: float = Field(2.0, gt=0)
    """A search that takes longer is given up (504)."""
    read_timeout_s: float = Field(5.0, gt=0)
    """A client must have sent its request in this time (408)."""
    rate: float | None = Field(None, gt=0)
    """Requests per second of one client, by its address; no limit when absent."""
    burst: int = Field(20, ge=1)
    """Requests that a client may send at once, where there is a rate."""
    trusted_proxies: tuple[str, ...] = ("127.0.0.1",)
    """Addresses whose X-Forwarded-For says who the client is."""
    log_queries: bool = False
    """Whether the log holds the queries: they are personal data."""
    reload_s: float = Field(2.0, gt=0)
    """Seconds between two looks for a new version of the index."""
    grace_s: float = Field(10.0, gt=0)
    """How long requests under way may take when the server is stopped."""
    torch_threads: int | None = Field(None, ge=1)
    """Threads of the encoder; what torch chooses when absent."""
    shown_users: int | None = Field(None, ge=1)
    """Queries and trails of at least this many users are told; engine.k of the mining when absent."""
    evidence_queries: int = Field(20_000, ge=1)
    """Training queries that evidence is looked up among: the most searched ones."""
