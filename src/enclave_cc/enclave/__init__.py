"""What is measured: the agent enclave and the app enclave.

Runs: inside enclaves, proven by measurement.
Trusts: the platform below `tee`, the KBS it was bound to, and nothing that the host says.
Never: writes plaintext of an image to a disk, or lets a reason that belongs to the owner reach the host.
"""
