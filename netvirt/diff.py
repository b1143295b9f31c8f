"""From the flows that are wanted and those that are there to what must change. Pure."""

from collections.abc import Collection, Mapping

from netvirt.pipeline.flow import Flow, FlowChanges


def difference(wanted: Mapping[int, Flow], installed: Collection[int]) -> FlowChanges:
    """The flows to add and the cookies to delete. Equal cookies are equal flows.

    Deletions go first in a bundle: a flow that replaces one with the same match has another
    cookie, and must not be taken for the one it replaces.
    """
    return FlowChanges(
        add=[flow for cookie, flow in wanted.items() if cookie not in installed],
        delete=[cookie for cookie in installed if cookie not in wanted],
    )
