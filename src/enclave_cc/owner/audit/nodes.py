"""Reads the Merkle tree out of the database.

What is stored are the hashes at every eighth level: leaves with their entries, and one node for each 256 of them, for
each 65,536, and so on. What lies between is computed from a *tile*, up to 256 hashes that stand side by side; a proof
needs about one tile for each of these levels. So appending writes next to nothing beside the entry itself, and no proof
reads more than a few thousand hashes of a log of any size.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from enclave_cc.errors import EnvironmentFault
from enclave_cc.owner.storage.database import Database
from enclave_cc.wire.tlog.tree import hash_children

TILE_HEIGHT = 8
_WIDTH = 1 << TILE_HEIGHT
_TILES_KEPT = 128  # about 20 kB each


class NodeReader:
    """Hashes of complete subtrees. Full tiles never change, and some are kept. Safe for many threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._tiles: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()

    def read(self, level: int, index: int) -> bytes:
        """The root of the leaves [index << level, (index + 1) << level), all of which are in the log."""
        shift = level % TILE_HEIGHT
        first = index << shift
        hashes = self._tile(level - shift, first // _WIDTH)[first % _WIDTH :][: 1 << shift]
        if len(hashes) != 1 << shift:
            raise EnvironmentFault("environment", f"the audit log lacks hashes of level {level} at {index}", _FIX)
        while len(hashes) > 1:
            hashes = [hash_children(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
        return hashes[0]

    def _tile(self, level: int, number: int) -> list[bytes]:
        with self._lock:
            tile = self._tiles.get((level, number))
            if tile is not None:
                self._tiles.move_to_end((level, number))
                return tile
        begin = number * _WIDTH
        with self._database.read() as db:
            if level == 0:
                sql = "SELECT leaf_hash FROM audit_entry WHERE leaf_index >= ? AND leaf_index < ? ORDER BY leaf_index"
                rows = db.execute(sql, (begin, begin + _WIDTH)).fetchall()
            else:
                sql = "SELECT hash FROM audit_node WHERE level = ? AND node_index >= ? AND node_index < ? ORDER BY node_index"
                rows = db.execute(sql, (level, begin, begin + _WIDTH)).fetchall()
        tile = [bytes(row[0]) for row in rows]
        if len(tile) == _WIDTH:
            with self._lock:
                self._tiles[level, number] = tile
                if len(self._tiles) > _TILES_KEPT:
                    self._tiles.popitem(last=False)
        return tile


_FIX = "Verify it with `enclave-cc kbs audit verify`."
