"""Program 1: pulls images and hands keys to app enclaves.

service    what comes in over ttrpc, decoded and answered
startup    makes the pod's state while the socket listens already
pod        one pod: platform, KBS, cache, containers
containers, container_states, handovers   what is known of each container, and its release
settings (measured), init_data (host-authored, bound by CONFIGID)
"""
