"""The platform's memory with its most expensive table built fast, and once for all copies of a world."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field, fields

import numpy as np
from scipy import sparse

from crops.platform.memory import NEIGHBOURS, Memory, pad_groups
from crops.platform.world import Ints

_BLOCK = 8192
"""Items whose neighbours are counted at a time."""


@dataclass
class SharedMemory(Memory):
    """A memory that equals `Memory` in all that it returns."""

    neighbours: dict[bytes, Ints] = field(default_factory=dict)
    """Co-watch tables by digest of the feed so far. The feed does not depend on what the searches of its day
    found, so all copies of a world watch the same and need the same tables."""

    @classmethod
    def of(cls, memory: Memory) -> SharedMemory:
        """Return a copy of `memory`; its tables are shared if it is a `SharedMemory` itself."""
        own = {one.name: copy.deepcopy(getattr(memory, one.name)) for one in fields(Memory)}
        return cls(**own, neighbours=memory.neighbours if isinstance(memory, cls) else {})

    def co_watched(self) -> Ints:
        """Return the items most often watched by the same people, [items, NEIGHBOURS], -1 pads rows."""
        digest = hashlib.sha256()
        for part in (array for day in self.watched for array in day):
            digest.update(len(part).to_bytes(8, "big") + part.tobytes())
        key = digest.digest()
        if key not in self.neighbours:
            self.neighbours[key] = self._count_together()
        return self.neighbours[key]

    def _count_together(self) -> Ints:
        """Count by a sparse product; keep the best of each row by sorting rows, counts and items as one."""
        items = len(self.plays)
        user, item = (
            np.concatenate([day[i] for day in self.watched] or [np.zeros(0, np.int64)]) for i in (0, 1)
        )
        table = np.full((items, NEIGHBOURS), -1, dtype=np.int64)
        if not len(user):
            return table
        shape = (int(user.max()) + 1, items)
        watched = sparse.csr_array((np.ones(len(user), dtype=np.float32), (user, item)), shape=shape)
        watched.data[:] = 1.0
        by_item = sparse.csr_array(watched.T)
        for start in range(0, items, _BLOCK):
            together = sparse.csr_array(by_item[start : start + _BLOCK] @ watched)
            row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
            count, other = together.data.astype(np.int64), together.indices.astype(np.int64)
            most = int(count.max(initial=0))
            pair = ((row * (most + 1) + most - count) * items + other)[other != row + start]
            pair.sort()
            row, other = pair // ((most + 1) * items), pair % items
            best = np.arange(len(row)) - np.searchsorted(row, row, side="left") < NEIGHBOURS
            block = pad_groups(row[best], together.shape[0], NEIGHBOURS, other[best])
            table[start : start + _BLOCK] = block
        return table
