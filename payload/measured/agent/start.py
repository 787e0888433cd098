# The agent enclave's first instruction. The interpreter runs isolated and without site, so the path is set here.
import gc
import sys

gc.disable()  # until all is loaded: the collector finds nothing to free among modules

sys.path[:] = ["/usr/lib/python3.11", "/usr/lib/python3.11/lib-dynload", "/usr/lib/enclave-cc"]

from enclave_cc.enclave.agent.__main__ import main  # noqa: E402

sys.exit(main())
