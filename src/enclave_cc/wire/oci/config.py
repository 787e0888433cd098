"""The image configuration (OCI image-spec 1.1, config.md): how the image wants to run, and its layers' diff ids."""

from __future__ import annotations

from collections.abc import Mapping

from enclave_cc.record import field, record
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.document import Document
from enclave_cc.wire.oci.manifest import LAYER_LIMIT, Platform

CONFIG_LIMIT = 4 << 20  # bytes


@record
class ImageConfig:
    """What an image says about itself.

    `env` items are `NAME=VALUE`; `entrypoint` and `cmd` are argv parts, `user` is `user[:group]` by name or id
    (`""` is root), `working_dir` is absolute or `""` (the root). Text holds no NUL.
    """

    platform: Platform
    diff_ids: tuple[Digest, ...]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return self.platform.architecture

    @property
    def os(self) -> str:
        return self.platform.os

    @classmethod
    def parse(cls, data: bytes) -> ImageConfig:
        """Reads an OCI or Docker image configuration. Raises `PeerError("malformed")`."""
        document = Document.parse(data, "the image configuration", limit=CONFIG_LIMIT)
        run = document.document("config")
        rootfs = document.document("rootfs")
        if rootfs.text("type", "layers") != "layers":
            rootfs.fail("its type is not layers")
        diff_ids = tuple(Digest.parse(text) for text in rootfs.texts("diff_ids"))
        if len(diff_ids) > LAYER_LIMIT:
            rootfs.fail(f"more than {LAYER_LIMIT} layers")
        config = cls(
            platform=Platform(document.text("os", ""), document.text("architecture", ""), document.text("variant", "")),
            diff_ids=diff_ids,
            entrypoint=run.texts("Entrypoint"),
            cmd=run.texts("Cmd"),
            env=run.texts("Env"),
            user=run.text("User", ""),
            working_dir=run.text("WorkingDir", ""),
            stop_signal=run.text("StopSignal", ""),
            volumes=tuple(sorted(run.document("Volumes").members())),
            exposed_ports=tuple(sorted(run.document("ExposedPorts").members())),
            labels=run.text_map("Labels"),
        )
        for text in (*config.entrypoint, *config.cmd, *config.env, config.user, config.working_dir, *config.volumes):
            if "\0" in text:
                run.fail("a NUL inside an argument, a variable or a path")
        if not all("=" in item[1:] for item in config.env):  # a name of at least one character
            run.fail("Env holds something else than NAME=VALUE")
        return config
