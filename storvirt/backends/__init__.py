"""What acts on Ceph: the only importers of `rados` and `rbd`, and the only callers of its tools.

Everything here is idempotent and decides nothing: the services say what, these say how.
"""
