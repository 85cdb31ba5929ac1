"""Ids for good: the number of a source's own id is the same in every import, on every machine.

Tables hold ids as whole numbers of 64 bits. A number comes from the id alone, without a map, so that daily
imports join. What people read and give is the source's own id.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError

LEAST_HASHED = 2**62
"""The least number of an id that is not a whole number below it."""
MIN_SALT = 16
"""Bytes of a salt that nobody can guess."""
_WHOLE = "[1-9][0-9]{0,18}"
_BLOCK = 64
"""Bytes of a block of SHA-256."""


def number_of(text: str) -> int:
    """Return the number of an item or a search from its own id in the source.

    A whole number from 1 to 2^62 - 1, written without leading zeros, is its own number. Any other text gets
    2^62 plus the first 62 bits of its SHA-256, which no whole number can meet.
    """
    if re.fullmatch(_WHOLE, text) and int(text) < LEAST_HASHED:
        return int(text)
    return _number(hashlib.sha256(text.encode()).digest())


def user_number(text: str, salt: bytes) -> int:
    """Return the number of a user: 2^62 plus the first 62 bits of the HMAC-SHA-256 of the id in the source.

    Whoever lacks the salt cannot find a user by trying ids.
    """
    return _number(hmac.digest(salt, text.encode(), "sha256"))


def _number(digest: bytes) -> int:
    return LEAST_HASHED | int.from_bytes(digest[:8], "big") >> 2


def number_sql(text: str) -> str:
    """Return the SQL (DuckDB) of `number_of`."""
    whole = f"regexp_full_match({text}, '{_WHOLE}') and try_cast({text} as HUGEINT) < {LEAST_HASHED}"
    return f"case when {whole} then try_cast({text} as BIGINT) else {_hash_sql(f'sha256({text})')} end"


def user_sql(text: str) -> str:
    """Return the SQL (DuckDB) of `user_number`, with `$outer` and `$inner` of `salt_keys`."""
    return _hash_sql(f"sha256($outer || unhex(sha256($inner || encode({text}))))")


def salt_keys(salt: bytes) -> dict[str, bytes]:
    """Return the two keys into which HMAC turns a salt."""
    key = (hashlib.sha256(salt).digest() if len(salt) > _BLOCK else salt).ljust(_BLOCK, b"\0")
    return {"outer": bytes(one ^ 0x5C for one in key), "inner": bytes(one ^ 0x36 for one in key)}


def _hash_sql(digest: str) -> str:
    return f"cast({LEAST_HASHED} + (cast('0x' || left({digest}, 16) as UBIGINT) >> 2) as BIGINT)"


def read_salt(path: Path) -> tuple[bytes, bool]:
    """Return the salt in a file, which is made (for its owner's eyes only) where there is none, and whether.

    Raises:
        CropsError: it cannot be read or made, or is short enough to be guessed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            salt = path.read_bytes().strip()
            made = False
        else:
            salt, made = secrets.token_hex(32).encode(), True
            with os.fdopen(handle, "wb") as file:
                file.write(salt + b"\n")
    except OSError as error:
        raise CropsError(f"{path}: cannot read or make the salt: {error}") from error
    if len(salt) < MIN_SALT:
        raise CropsError(
            f"{path} holds {len(salt)} bytes, a salt that can be guessed; write {MIN_SALT} bytes or more, or "
            "name a file that is not there, and one is made"
        )
    return salt, made


def salt_mark(salt: bytes) -> str:
    """Return what tells one salt from another and does not give it away."""
    return hmac.digest(salt, b"the mark of this salt", "sha256").hex()[:16]


def numbers_of(text: str) -> tuple[int, ...]:
    """Return the numbers that a given id may mean: its own, and the very number where it is one of 64 bits.

    Logs that no import wrote may hold any whole number.
    """
    own, plain = number_of(text.strip()), plain_number(text)
    return (own,) if plain in (own, None) else (own, plain)


def plain_number(text: str) -> int | None:
    """Return the whole number of 64 bits that a text is, None where it is none."""
    found = int(text) if re.fullmatch("0|-?[1-9][0-9]{0,18}", text.strip()) else None
    return found if found is not None and -(2**63) <= found < 2**63 else None


def known_numbers(
    texts: Iterable[str], known: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
) -> NDArray[np.int64]:
    """Return the numbers [n] of given ids: of those that each may mean, the first that is known.

    Args:
        texts: as people give ids.
        known: from numbers [m] to whether each is known.
    """
    found = []
    for numbers in map(numbers_of, texts):
        met = known(np.array(numbers, dtype=np.int64)) if len(numbers) > 1 else [True]
        found.append(next((one for one, here in zip(numbers, met, strict=True) if here), numbers[0]))
    return np.array(found, dtype=np.int64)


def shown_id(row: Mapping[str, Any]) -> str:
    """Return the id of an item's row as people read it: the source's own where there is one."""
    return str(row.get("source_id") or row["item_id"])
