"""Who may ask, and how often."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections import OrderedDict
from collections.abc import Mapping

_CLIENTS = 10_000
"""Clients whose use is remembered; the one not seen for longest is forgotten."""


class RateLimit:
    """A token bucket for each client."""

    def __init__(self, rate: float, burst: int) -> None:
        """Allow `rate` requests per second, and `burst` at once."""
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str, now: float) -> float:
        """Return 0 if the client may ask now, which is counted, else the seconds until it may.

        Args:
            client: who asks.
            now: seconds of a clock that never goes back.
        """
        tokens, seen = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - seen) * self._rate)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - allowed, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._rate


def has_key(headers: Mapping[bytes, bytes], key: str) -> bool:
    """Return whether a request carries the API key.

    It may come as `Authorization: Bearer KEY`, as `X-API-Key: KEY`, or as the password of HTTP Basic, which
    is what a browser can send.
    """
    given = headers.get(b"x-api-key") or _credentials(headers.get(b"authorization", b""))
    return hmac.compare_digest(given, key.encode())


def _credentials(header: bytes) -> bytes:
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""
