"""The chart: that Kubernetes takes what it renders, for every switch, and that its parts fit."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from helm_python.chart import lint
from kubernetes_validate import utils as kubernetes

from netvirt.cni.call import CHOICES, VERSIONS
from netvirt.model import Overlay
from netvirt.service.cni_install import CHAINED
from tenancy.model import Resource
from tests.chart import (
    CHART,
    SMALLEST,
    Manifest,
    at,
    container,
    containers,
    manifests,
    merged,
    one,
    pod_of,
    render,
)

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = (CHART / "values.yaml").read_text()
IMAGE_ROOT = CHART.parents[1] / "packaging" / "image" / "root"
NVCTL = Path(sys.executable).with_name("nvctl")

# Kubernetes' newest three, and the oldest that the chart says it is for.
KUBERNETES_VERSIONS = ["1.25.0", *list(dict.fromkeys(kubernetes.all_versions()))[-3:]]
# It would read its definitions, which are many, from disk for every object.
kubernetes.schema_contents = cache(kubernetes.schema_contents)

# A switch that stands only together with others.
COMPANIONS: dict[str, dict[str, Any]] = {
    "database.enabled=False": {"database": {"address": "tcp:10.0.0.9:6640"}},
    "cni.chain/tuning": {"cni": {"sysctls": {"net.core.somaxconn": "512"}}},
}
# Values that are no switches, each as a user might give it.
OTHERS = [
    {"image": {"repository": "registry.example:5000/net/virtkit", "tag": "1.2.3"}},
    {"image": {"pullSecrets": ["registry", "other"]}},
    {"nameOverride": "nets", "fullnameOverride": "nets"},
    {"tenant": {"name": "red", "quota": {"ports": 5_000_000, "bytes": "2TiB"}}},
    {"network": {"name": "front", "cidrs": ["10.1.0.0/16", "fd00:1::/64"], "mtu": 1400}},
    {"cni": {"chain": ["bandwidth", "portmap"], "allow": ["ips", "mac"]}},
    {"cni": {"chain": []}},
    {"cni": {"allow": []}},
    {"database": {"port": 6640, "tolerations": [{"key": "a", "operator": "Exists"}]}},
    {"database": {"storage": {"kind": "claim", "storageClassName": "fast", "size": "10Gi"}}},
    {"agent": {"maxUnavailable": 3}},
    {"node": {"tolerations": [], "nodeSelector": {"net": "virtkit", "kubernetes.io/os": None}}},
    {"agent": {"resources": {"limits": {"cpu": 2, "memory": "1Gi"}}}},
    {"global": {"from": "a chart above"}},
]


def schema_at(path: str) -> dict[str, Any]:
    found = SCHEMA
    for key in filter(None, path.split(".")):
        found = found["properties"][key]
        if "$ref" in found:
            found = SCHEMA["$defs"][found["$ref"].rpartition("/")[2]]
    return found


def paths(of: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value that the schema knows, groups included, with its schema."""
    schema = schema_at(of)
    yield of, schema
    for key in schema.get("properties", ()):
        if key != "global":
            yield from paths(f"{of}.{key}" if of else key)


def switches() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every boolean both ways, and every value of every choice."""
    for path, schema in paths():
        choices: list[Any] = schema.get("enum", [])
        if schema.get("type") == "boolean":
            choices = [True, False]
        for choice in choices:
            yield f"{path}={choice}", at(path, choice)
        for choice in schema.get("items", {}).get("enum", ()):
            yield f"{path}/{choice}", at(path, [choice])


def cases() -> list[Any]:
    found = [("defaults", {}), *switches()]
    found += [(json.dumps(values), values) for values in OTHERS]
    return [
        pytest.param(merged(values, COMPANIONS.get(name, {})), id=name) for name, values in found
    ]


@pytest.fixture(scope="module")
def defaults() -> list[Manifest]:
    return manifests()


# What Kubernetes and Helm say of it


@pytest.mark.parametrize("values", cases())
def test_kubernetes_takes_what_is_rendered(values: dict[str, Any]) -> None:
    documents = manifests(values)

    for document in documents:
        for version in KUBERNETES_VERSIONS:
            kubernetes.validate(document, version, strict=True)


@pytest.mark.parametrize("values", cases())
def test_its_parts_fit_together(values: dict[str, Any]) -> None:
    documents = manifests(values)

    names = [(one["kind"], one["metadata"]["name"]) for one in documents]
    assert len(set(names)) == len(names)
    accounts = {name for kind, name in names if kind == "ServiceAccount"}
    for document in documents:
        pod = pod_of(document)
        if pod is None:
            continue
        labels = document["spec"]["template"]["metadata"]["labels"]
        selector = document["spec"].get("selector", {}).get("matchLabels", {})
        assert selector.items() <= labels.items()
        assert pod["serviceAccountName"] in accounts
        claims = [
            one["metadata"]["name"] for one in document["spec"].get("volumeClaimTemplates", ())
        ]
        volumes = [one["name"] for one in pod.get("volumes", ())] + claims
        assert len(set(volumes)) == len(volumes)
        own = [one for _, one in containers([document])]
        assert len({one["name"] for one in own}) == len(own)
        mounted = {mount["name"] for one in own for mount in one.get("volumeMounts", ())}
        assert mounted == set(volumes)
    selectors = [
        json.dumps(one["spec"]["selector"], sort_keys=True)
        for one in documents
        if one["kind"] in ("DaemonSet", "StatefulSet")
    ]
    assert len(set(selectors)) == len(selectors)
    for _, one_container in containers(documents):
        # A number that went through Helm's templates as a floating one would look so.
        assert not [word for word in words(one_container) if re.search(r"\de\+\d", word)]


def words(of: Manifest) -> list[str]:
    return [*of.get("command", ()), *of.get("args", ())]


def test_helm_finds_nothing_to_warn_of() -> None:
    report = lint(str(CHART), values=SMALLEST, strict=True, namespace="virtkit-system")

    assert report["errors"] == []
    assert [one for one in report["messages"] if "icon" not in one["error"]] == []


# Values


@pytest.mark.parametrize(
    "path", [path for path, schema in paths() if schema.get("additionalProperties") is False]
)
def test_an_unknown_key_is_refused(path: str) -> None:
    with pytest.raises(helm_python.errors.HelmValuesError) as refused:
        render(at(f"{path}.hostacess" if path else "hostacess", True))

    assert "additional properties 'hostacess' not allowed" in str(refused.value)
    assert f"at '/{path.replace('.', '/')}'" in str(refused.value) or not path


@pytest.mark.parametrize("path", [path for path, schema in paths() if path])
def test_a_value_of_a_wrong_type_is_refused(path: str) -> None:
    wrong: Any = 7 if schema_at(path).get("type") in ("boolean", "string", "object") else {"a": 1}

    with pytest.raises(helm_python.errors.HelmValuesError) as refused:
        render(at(path, wrong))

    assert f"at '/{path.replace('.', '/')}'" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("tenant.name", "Red"),
        ("network.name", "a/b"),
        ("network.cidrs", []),
        ("network.cidrs", ["10.0.0.0/16"] * 3),
        ("network.mtu", 68),
        ("tenant.quota", {"cows": 1}),
        ("cni.binDir", "opt/cni"),
        ("cni.conflist", "10-virtkit.conf"),
        ("cni.chain", ["portmap", "portmap"]),
        ("cni.cniVersion", "2.0.0"),
        ("cni.waitSeconds", 0),
        ("database.port", 80),
        ("database.address", "10.0.0.1"),
        ("database.storage.size", "big"),
        ("agent.maxUnavailable", "0%"),
        ("image.tag", "latest"),
    ],
)
def test_a_value_that_cannot_be_is_refused(path: str, value: Any) -> None:
    with pytest.raises(helm_python.errors.HelmValuesError) as refused:
        render(at(path, value))

    assert f"/{path.replace('.', '/')}" in str(refused.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (at("database.storage.node", ""), "database.storage.node: on which node is the fabric"),
        (at("database.enabled", False), "database.address: database.enabled is false, so say"),
        (at("cni.chain", ["tuning"]), "cni.sysctls: tuning sets them and nothing else. Give both"),
        (at("cni.sysctls", {"a.b": "1"}), "cni.sysctls: tuning sets them and nothing else."),
    ],
)
def test_values_that_do_not_go_together_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(helm_python.errors.HelmRenderError, match=re.escape(says)):
        render(values)


def test_the_schema_knows_all_values_and_no_others() -> None:
    def keys(of: dict[str, Any], path: str = "") -> Iterator[str]:
        for key, value in of.items():
            yield (here := f"{path}.{key}" if path else key)
            if isinstance(value, dict) and "properties" in schema_at(here):
                yield from keys(value, here)

    # Values that have no default: a quota, a limit of a container that needs none.
    optional = re.compile(r"(requests|limits|tenant\.quota\.\w+)$")
    ours = {path for path, _ in paths() if path and not optional.search(path)}
    assert ours == {path for path in keys(yaml.safe_load(VALUES)) if not optional.search(path)}
    assert set(schema_at("tenant.quota")["properties"]) == set(Resource)
    assert set(schema_at("network.overlay")["enum"]) == set(Overlay)
    assert schema_at("cni.cniVersion")["enum"] == list(VERSIONS)
    assert schema_at("cni.allow")["items"]["enum"] == list(CHOICES)
    assert schema_at("cni.chain")["items"]["enum"] == list(CHAINED)


def test_every_value_is_explained() -> None:
    """Each has a comment above it, or is the first of a group that has one."""
    lines = VALUES.splitlines()
    for number, line in enumerate(lines):
        if not re.match(r" *[a-zA-Z]\w*:", line) or line.lstrip().startswith(
            ("requests", "limits")
        ):
            continue
        above = lines[number - 1].strip()
        first_of_group = above.endswith(":") and lines[number - 2].strip().startswith("#")
        is_said_elsewhere = re.match(r" *(resources|priorityClassName|switchResources):", line)
        assert above.startswith("#") or first_of_group or is_said_elsewhere, line


# Rights


@pytest.mark.parametrize("values", cases())
def test_nothing_has_rights_in_the_cluster(values: dict[str, Any]) -> None:
    documents = manifests(values)

    kinds = {document["kind"] for document in documents}
    assert kinds <= {
        *("ServiceAccount", "Service", "PersistentVolume"),
        *("StatefulSet", "DaemonSet", "Job"),
    }
    for document in documents:
        if document["kind"] == "ServiceAccount":
            assert document["automountServiceAccountToken"] is False
        pod = pod_of(document)
        if pod is not None:
            assert pod["automountServiceAccountToken"] is False


def test_only_what_works_on_the_nodes_network_is_privileged(defaults: list[Manifest]) -> None:
    privileged, confined = set(), set()
    for _, one_container in containers(defaults):
        rights = one_container["securityContext"]
        if rights.get("privileged"):
            privileged.add(one_container["name"])
        else:
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"]["drop"] == ["ALL"]
            confined.add((one_container["name"], *rights["capabilities"].get("add", ())))

    assert privileged == {"agent", "ovs-vswitchd"}
    assert confined == {
        *(("database",), ("ovsdb-server",), ("cni",), ("tenant",), ("network",)),
        ("guard", "NET_ADMIN"),
    }


# Containers


def test_every_container_says_what_it_needs_and_how_it_is_seen_to_live(
    defaults: list[Manifest],
) -> None:
    for document, one_container in containers(defaults):
        assert {"cpu", "memory"} <= one_container["resources"]["requests"].keys()
        assert "memory" in one_container["resources"]["limits"]
        assert not one_container["image"].endswith(":latest")
        assert re.search(r":\d+\.\d+\.\d+$", one_container["image"])
        runs_for_long = one_container in (pod_of(document) or {})["containers"]
        if runs_for_long and document["kind"] != "Job":
            assert "exec" in one_container["readinessProbe"]
            # keep-cni does one thing after the other, and says so by the file that it keeps.
            assert ("livenessProbe" in one_container) == (one_container["name"] != "cni")


def test_what_is_run_is_in_the_image(defaults: list[Manifest]) -> None:
    of_debian = {"test", "ovs-vsctl", "ovs-appctl"}
    for _, one_container in containers(defaults):
        commands = [one_container["command"]]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in one_container:
                commands.append(one_container[probe]["exec"]["command"])
        for program, *_ in commands:
            if program in of_debian:
                continue
            place = program.lstrip("/") if program.startswith("/") else f"usr/bin/{program}"
            assert (IMAGE_ROOT / place).stat().st_mode & 0o111, program


@cache
def options_of(*command: str) -> frozenset[str]:
    done = subprocess.run(
        [NVCTL, *command, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    return frozenset(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize("values", cases())
def test_nvctl_has_every_option_that_is_used(values: dict[str, Any]) -> None:
    commands = {
        "tenant": ("tenant", "create"),
        "network": ("network", "create"),
        "cni": ("cni", "install"),
        "agent": ("agent", "run"),
        "database": ("db", "run"),
    }
    for _, one_container in containers(manifests(values)):
        used = {word.partition("=")[0] for word in words(one_container) if word.startswith("--")}
        command = commands.get(one_container["name"])
        assert used <= (options_of(*command) if command else frozenset())


# What happens in order


def test_the_conflist_comes_last(defaults: list[Manifest]) -> None:
    """Only one container can write it, when the pod's agent runs, and it waits for the agent."""
    node = one(defaults, "DaemonSet", "-node")
    pod = pod_of(node) or {}

    writers = [
        document["metadata"]["name"] + "/" + one_container["name"]
        for document, one_container in containers(defaults)
        for mount in one_container.get("volumeMounts", ())
        if mount["mountPath"].startswith("/etc/cni")
    ]
    assert writers == ["virtkit-node/cni"]
    assert [one_container["name"] for one_container in pod["containers"]] == ["agent", "cni"]
    cni = container(node, "cni")
    assert "--wait-for-agent=120" in cni["args"]
    # It keeps what it wrote while the agent is replaced.
    assert {"name": "REMOVE_ON_EXIT", "value": "false"} in cni["env"]


def test_all_of_it_runs_before_there_is_a_pod_network(defaults: list[Manifest]) -> None:
    not_ready = {"key": "node.kubernetes.io/not-ready", "operator": "Exists"}
    for document in defaults:
        pod = pod_of(document)
        if pod is None:
            continue
        assert pod["hostNetwork"] is True
        # Names would be asked of pods.
        assert pod["dnsPolicy"] == "Default"
        tolerated = pod["tolerations"]
        assert not_ready in tolerated or {"operator": "Exists"} in tolerated
        assert pod["priorityClassName"].startswith("system-")


@pytest.mark.parametrize("release", ["virtkit", "a-cluster", "virtkit-" + 45 * "x"])
def test_nodes_find_the_database_by_its_service(release: str) -> None:
    documents = manifests(release=release)

    service = one(documents, "Service")
    variable = service["metadata"]["name"].upper().replace("-", "_")
    told = {
        variable["value"]
        for _, one_container in containers(documents)
        for variable in one_container.get("env", ())
        if variable["name"] == "VIRTKIT_DB"
    }
    assert told == {f"tcp:$({variable}_SERVICE_HOST):$({variable}_SERVICE_PORT)"}
    database = one(documents, "StatefulSet")
    labels = database["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {
        port["name"]: port["containerPort"] for port in container(database, "database")["ports"]
    }
    (port,) = service["spec"]["ports"]
    assert ports[port["targetPort"]] == port["port"]
    assert f"--listen=ptcp:{port['port']}:$(NODE_IP)" in container(database, "database")["args"]
    for document in documents:
        pod = pod_of(document)
        assert pod is None or pod["enableServiceLinks"] is True
        # Controllers make labels of names, which have a longest length; some add a hash to them.
        if document["kind"] in ("DaemonSet", "StatefulSet"):
            assert len(document["metadata"]["name"]) <= 63 - len("-0123456789")
        elif document["kind"] != "PersistentVolume":
            assert len(document["metadata"]["name"]) <= 63


def test_a_database_elsewhere_is_used_instead() -> None:
    documents = manifests({"database": {"enabled": False, "address": "tcp:10.0.0.9:6640"}})

    assert {document["kind"] for document in documents} == {"ServiceAccount", "DaemonSet", "Job"}
    agent = container(one(documents, "DaemonSet", "-node"), "agent")
    assert {"name": "VIRTKIT_DB", "value": "tcp:10.0.0.9:6640"} in agent["env"]


def test_a_local_database_stays_on_its_node(defaults: list[Manifest]) -> None:
    volume, database = one(defaults, "PersistentVolume"), one(defaults, "StatefulSet")

    (claim,) = database["spec"]["volumeClaimTemplates"]
    claimed = f"{claim['metadata']['name']}-{database['metadata']['name']}-0"
    assert volume["spec"]["claimRef"]["name"] == claimed
    assert volume["spec"]["claimRef"]["namespace"] == "virtkit-system"
    assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"]
    assert volume["spec"]["capacity"] == claim["spec"]["resources"]["requests"]
    assert "n1" in json.dumps(volume["spec"]["nodeAffinity"])
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert volume["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


@pytest.mark.parametrize(
    "values",
    [
        at("agent.datapath", "auto"),
        at("cni.name", "other"),
        at("network.mtu", 1400),
        at("database.port", 6640),
        at("tenant.name", "red"),
    ],
)
def test_the_switch_is_not_touched_by_what_is_not_about_it(
    defaults: list[Manifest], values: dict[str, Any]
) -> None:
    def pod(documents: list[Manifest]) -> Manifest:
        return one(documents, "DaemonSet", "-openvswitch")["spec"]["template"]

    assert pod(manifests(values)) == pod(defaults)


def test_a_job_that_has_run_is_never_changed() -> None:
    """Kubernetes refuses to: so other values make another Job, and the same make the same."""

    def name(values: dict[str, Any]) -> str:
        return str(one(manifests(values), "Job")["metadata"]["name"])

    before = name({})
    assert name({}) == before
    assert name(at("cni.name", "other")) == before
    for changed in (at("network.mtu", 1400), at("image.tag", "9.9.9"), at("tenant.name", "red")):
        assert name(changed) != before


def test_labels_by_which_pods_are_found_do_not_change_with_versions(
    defaults: list[Manifest],
) -> None:
    for document in defaults:
        if pod_of(document) is not None:
            labels = document["spec"]["template"]["metadata"]["labels"]
            assert "0.1.0" not in json.dumps(labels)


def test_chart_and_image_are_of_one_version() -> None:
    repository = CHART.parents[1]
    (version,) = re.findall('^version = "(.*)"', (repository / "pyproject.toml").read_text(), re.M)

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert (
        f"ARG VERSION={version}\n"
        in (repository / "packaging" / "image" / "Dockerfile").read_text()
    )


# Words


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "Nodes turn Ready one after the other"),
        (at("database.storage.kind", "ephemeral"), "WARNING: database.storage.kind is ephemeral"),
        (at("database.guard", False), "WARNING: database.guard is false"),
        (at("setup.enabled", False), "nvctl network create pods --tenant default --cidr 10.244"),
        (at("openvswitch.enabled", False), "every node needs a running Open vSwitch"),
        (at("network.hostAccess", False), "kubelet cannot probe pods"),
        (at("agent.datapath", "netdev"), "The chart does not do that."),
        (at("cni.enabled", False), "no node's container runtime is told"),
    ],
)
def test_notes_say_what_the_values_mean(values: dict[str, Any], says: str) -> None:
    notes = render(values)["NOTES.txt"]

    assert says in notes
    assert values == {} or says not in render()["NOTES.txt"]
    assert max(map(len, notes.splitlines())) <= 120
