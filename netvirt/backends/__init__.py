"""What acts on a host for netvirt: switch, local OVSDB, links, frames. Nothing here decides."""

# It keeps eventlet out of `ovs.poller`; os-ken requires eventlet, so it is installed.
import tenancy.backends  # noqa: F401
