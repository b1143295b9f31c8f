"""Reads that each OSD has answered so far, and the names of objects it was lately asked for."""

import json
import sys

from cluster import connected

history = sys.argv[1:] == ["history"]
with connected() as cluster:
    _, out, _ = cluster.mon_command(json.dumps({"prefix": "osd ls", "format": "json"}), b"")
    found = {}
    for osd in json.loads(out):
        prefix = "dump_historic_ops" if history else "perf dump"
        request = json.dumps({"prefix": prefix, "format": "json"})
        code, answer, status = cluster.osd_command(osd, request, b"")
        assert code == 0, status
        if history:
            found[osd] = [op["description"] for op in json.loads(answer)["ops"]]
        else:
            found[osd] = json.loads(answer)["osd"]["op_r"]
print(json.dumps(found))
