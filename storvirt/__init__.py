"""Tenant disks on Ceph: pools, namespaces, images, tiers, and where an image's bytes are.

The modules beside this file decide and are pure, and so are `formats` (files of disks),
`placement` (which host is nearest to an image) and `tiers` (caches before pools).
`backends` act on Ceph and are the only importers of `rados` and `rbd`. `service` joins the two
with the fabric database; `cli` is the command `svctl`.
"""
