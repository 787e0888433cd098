"""The metadata image: an EROFS whose files' bytes are elsewhere."""

from enclave_cc.enclave.rootfs.erofs.content import Spill
from enclave_cc.enclave.rootfs.erofs.writer import write_metadata

__all__ = ["Spill", "write_metadata"]
