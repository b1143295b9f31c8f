"""Many guests that read the same golden image at once, 1 KiB at a time.

usage: golden_readers.py SOCKET ORIGINAL EXPORT...

Each export is read by a thread of its own, in an order of its own: one KiB out of every 64, and
compared with ORIGINAL.
"""

import random
import sys
import threading
from pathlib import Path

import nbd


def read(socket: str, export: str, original: bytes, failures: list[str]) -> None:
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.connect_unix(socket)
    order = list(range(0, len(original), 64 << 10))
    random.Random(export).shuffle(order)
    for offset in order:
        if bytes(handle.pread(1024, offset)) != original[offset : offset + 1024]:
            failures.append(f"{export} at {offset}")
    handle.shutdown()


def main() -> None:
    socket, original, *exports = sys.argv[1:]
    content = Path(original).read_bytes()
    failures: list[str] = []
    threads = [
        threading.Thread(target=read, args=(socket, export, content, failures))
        for export in exports
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:5]
    print("null")


if __name__ == "__main__":
    main()
