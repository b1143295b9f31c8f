"""Tenant disks on Ceph: pools, namespaces, images, tiers, and where an image's bytes are.

`model`, `osdmap`, `placement`, `qcow2`, `hypervisor`, `caps` and `tiering` decide and are pure.
`backends` act on Ceph and are the only importers of `rados` and `rbd`. `service` joins the two
with the fabric database; `cli` is the command `svctl`.
"""
