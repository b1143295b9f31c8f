"""What `svctl` can do, as functions of (fabric database, Ceph cluster, request).

Each writes its intent, with the quota it needs, to the fabric database; acts on Ceph; and marks
the intent done. All of it is repeatable: killed anywhere and run again, the end is the same.
"""
