"""Run as a program: a supervisor that makes a pod with a pause container, then waits to be killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from enclave_cc.host.sandbox import configuration
from enclave_cc.host.sandbox.journal import Kind
from enclave_cc.host.sandbox.pod import Pod, PodOptions
from enclave_cc.host.sandbox.states import Event

if __name__ == "__main__":
    network, remove, name = sys.argv[2], sys.argv[3] == "remove", sys.argv[4]
    pod = Pod.create(configuration.load(sys.argv[1]), PodOptions(name=name, network=network, remove=remove))
    print("created", pod.id, flush=True)
    pod.advance(Event.START, container=pod.id, image="none")
    lease = Path(pod.places.leases / pod.id)
    pod._note(Kind.LEASE, path=str(lease))
    lease.write_text("00" * 16 + "\n")
    pod.start_pause()
    print("started", flush=True)
    time.sleep(600)
