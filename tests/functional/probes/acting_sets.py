"""POOL: the acting set of each of its placement groups, as the monitors say."""

import json
import sys

from cluster import connected

with connected() as cluster:

    def ask(prefix: str, **arguments: str) -> dict:
        request = json.dumps({"prefix": prefix, "format": "json", **arguments})
        code, answer, status = cluster.mon_command(request, b"")
        assert code == 0, status
        return json.loads(answer)

    (pool,) = (p for p in ask("osd dump")["pools"] if p["pool_name"] == sys.argv[1])
    names = [f"{pool['pool']}.{seed:x}" for seed in range(pool["pg_num"])]
    print(json.dumps({name: ask("pg map", pgid=name)["acting"] for name in names}))
