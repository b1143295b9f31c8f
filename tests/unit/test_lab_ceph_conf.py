"""What a lab's Ceph cluster begins with, read by Ceph's own tools where they can."""

import base64
import configparser
import json
import struct
import subprocess
from pathlib import Path

import pytest

from lab import ceph_conf


def configured(hosts: int) -> configparser.ConfigParser:
    text = ceph_conf.configuration(
        fsid="f", mon_address="10.77.0.1", network="10.77.0.0/24", hosts=hosts
    )
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser


@pytest.mark.parametrize(
    ("hosts", "size", "min_size"), [(1, 1, 1), (2, 2, 1), (3, 3, 2), (9, 3, 2)]
)
def test_one_osd_may_die_wherever_there_are_two(hosts: int, size: int, min_size: int) -> None:
    settings = configured(hosts)["global"]

    found = (settings["osd_pool_default_size"], settings["osd_pool_default_min_size"])
    assert found == (str(size), str(min_size))


def test_a_key_is_one_that_cephx_accepts() -> None:
    key = base64.b64decode(ceph_conf.Keys.new(1).admin)

    kind, _, _, length = struct.unpack_from("<hiih", key)
    assert (kind, length, len(key)) == (1, 16, 12 + 16)


def test_the_monitor_knows_every_daemon_and_what_it_may_do() -> None:
    keys = ceph_conf.Keys(monitor="M", admin="A", manager="G", osds=("O0", "O1"))
    parser = configparser.ConfigParser()
    parser.read_string(keys.monitor_keyring())

    assert {name: parser[name]["key"] for name in parser.sections()} == {
        "mon.": "M",
        "client.admin": "A",
        "mgr.ctl": "G",
        "osd.0": "O0",
        "osd.1": "O1",
    }
    assert parser["osd.1"]["caps mon"] == '"allow profile osd"'


def test_crushtool_reads_the_map_and_spreads_copies_over_hosts(tmp_path: Path) -> None:
    text, binary = tmp_path / "crush.txt", tmp_path / "crush"
    text.write_text(ceph_conf.crush_map(["h1", "h2", "h3"]))
    subprocess.run(["crushtool", "--compile", text, "--outfn", binary], check=True)

    dump = json.loads(
        subprocess.run(
            ["crushtool", "-i", binary, "--dump"], check=True, capture_output=True, text=True
        ).stdout
    )
    hosts = {b["name"]: [i["id"] for i in b["items"]] for b in dump["buckets"] if b["id"] > -5}
    placed = subprocess.run(
        [
            *("crushtool", "-i", binary, "--test", "--show-mappings"),
            *("--rule", "0", "--num-rep", "3", "--min-x", "0", "--max-x", "50"),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()

    assert {name: hosts[name] for name in ("h1", "h2", "h3")} == {"h1": [0], "h2": [1], "h3": [2]}
    assert {device["class"] for device in dump["devices"]} == {"ssd"}
    assert len(placed) == 51
    assert all(sorted(json.loads(line.rpartition(" ")[2])) == [0, 1, 2] for line in placed)
