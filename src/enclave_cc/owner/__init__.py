"""The relying party's side: verifier, KBS, policies, publishing.

Runs: on the data owner's machine, or where the owner runs the KBS.
Trusts: itself and the roots that the owner named.
Never: releases a key before the evidence is appraised and the policy says so.
"""
