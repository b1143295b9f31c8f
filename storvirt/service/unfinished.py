"""What was begun and not finished, besides images and namespaces, and the commands to finish it."""

from storvirt.model import State
from storvirt.service import catalog, golden_catalog
from tenancy.backends.fabric import Fabric


def unfinished(fabric: Fabric) -> list[tuple[str, str, str]]:
    """(object, its state, the command that finishes it) of pools, snapshots, groups and golden
    images."""
    groups, moments, snapshots, pins, tenants = fabric.select_many(
        [("ImageGroup", {}), ("GroupSnapshot", {}), ("Snapshot", {}), ("Pin", {}), ("Tenant", {})]
    )
    tenant_of = {row.id: row["name"] for row in tenants}
    group_of = {row.id: row for row in groups}
    image_of = {entry.row.id: entry.record for entry in catalog.images(fabric)}
    found = [
        (f"pool {pool.name}", str(pool.state), f"svctl pool {_verb(pool.state)} {pool.name}")
        for pool in catalog.pools(fabric)
        if pool.state is not State.READY
    ]
    for row in snapshots:
        image = image_of.get(row["image"])
        if row["state"] != State.READY and image is not None:
            ref = f"{image.name}@{row['name']}"
            command = f"svctl snapshot {_verb(row['state'])} {ref} --tenant {image.tenant}"
            found.append((f"snapshot {image.path}@{row['name']}", row["state"], command))
    for row in groups:
        if row["state"] != State.READY:
            tenant = tenant_of.get(row["tenant"], "?")
            command = f"svctl group {_verb(row['state'])} {row['name']} --tenant {tenant}"
            found.append((f"group {tenant}/{row['name']}", row["state"], command))
    for row in moments:
        group = group_of.get(row["group"])
        if row["state"] != State.READY and group is not None:
            verb = "delete-snapshot" if row["state"] == State.DELETING else "snapshot"
            tenant, ref = tenant_of.get(group["tenant"], "?"), f"{group['name']}@{row['name']}"
            command = f"svctl group {verb} {ref} --tenant {tenant}"
            found.append((f"group snapshot {tenant}/{ref}", row["state"], command))
    for entry in golden_catalog.entries(fabric):
        golden = entry.record
        if golden.state is not State.READY:
            command = f"svctl golden {_verb(golden.state)} {golden.name} --tenant {golden.tenant}"
            found.append((f"golden image {golden.tenant}/{golden.name}", golden.state, command))
    found += [
        (f"pin of placement group {row['group']}", row["state"], "the same svctl pin or unpin")
        for row in pins
        if row["state"] != State.READY
    ]
    return found


def _verb(state: str) -> str:
    return "delete" if state == State.DELETING else "create"
