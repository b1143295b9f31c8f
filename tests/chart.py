"""The chart, rendered by Helm itself: what a cluster would be given for some values."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[1] / "charts" / "virtkit"
# The one value without a default.
SMALLEST: dict[str, Any] = {"database": {"storage": {"node": "n1"}}}

Manifest = dict[str, Any]


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `more` laid over them, as `helm --set` does it."""
    result = copy.deepcopy(dict(values))
    for key, value in more.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def at(path: str, value: Any) -> dict[str, Any]:
    """The values with one value at a path: `cni.name`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def render(
    values: Mapping[str, Any] | None = None,
    *,
    release: str = "virtkit",
    namespace: str = "virtkit-system",
) -> dict[str, str]:
    """Texts by template. Raises Helm's own errors, whose messages are what a user reads."""
    with helm_python.Chart.load(CHART) as chart:
        wanted = merged(SMALLEST, values or {})
        chart.validate_schema(wanted)
        texts = chart.render(wanted, name=release, namespace=namespace)
    return {name.rpartition("/")[2]: text for name, text in texts.items()}


def manifests(
    values: Mapping[str, Any] | None = None, *, release: str = "virtkit"
) -> list[Manifest]:
    """The objects that Helm would create."""
    return [
        document
        for name, text in render(values, release=release).items()
        if name != "NOTES.txt"
        for document in yaml.safe_load_all(text)
        if document is not None
    ]


def one(documents: list[Manifest], kind: str, ending: str = "") -> Manifest:
    """The only object of its kind, or the only one whose name ends so."""
    found = [
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"].endswith(ending)
    ]
    assert len(found) == 1, f"{len(found)} of kind {kind} ending in {ending!r}"
    return found[0]


def pod_of(document: Manifest) -> Manifest | None:
    """The pod's specification in a workload, or None."""
    template = document.get("spec", {}).get("template")
    return template["spec"] if template else None


def containers(documents: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Every container, those that only initialise included, with its workload."""
    for document in documents:
        pod = pod_of(document) or {}
        for container in (*pod.get("initContainers", ()), *pod.get("containers", ())):
            yield document, container


def container(document: Manifest, name: str) -> Manifest:
    """A workload's container of this name."""
    found = [one for _, one in containers([document]) if one["name"] == name]
    assert len(found) == 1, f"no container {name}"
    return found[0]
