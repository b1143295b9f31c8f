"""The rules of the host's own firewall that host access needs, as text for nft(8). Pure.

Everything is in one table of our own, `inet virtkit`; what others have, kube-proxy's and
portmap's rules above all, stays and has the first word.
"""

from collections.abc import Collection

TABLE = "inet virtkit"

# Removing a table that is not there is an error, unless it has just been added.
REMOVED = f"add table {TABLE}\ndelete table {TABLE}\n"

# Behind kube-proxy and portmap, which masquerade at `srcnat`: whoever comes first decides.
# `fib ... oif type` is the type of an address as seen from the link that the packet leaves by.
_CHAINS = """\
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        iifname @gateways ip daddr 127.0.0.0/8 drop comment "kube-proxy lets loopback be routed"
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname @gateways oifname @gateways iifname . oifname != @same ct status ! dnat drop \\
            comment "networks are joined by Services only"
    }
    chain output {
        type filter hook output priority filter; policy accept;
        oifname @gateways icmp type redirect drop comment "a Service leads back on purpose"
        oifname @gateways icmpv6 type nd-redirect drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat + 10; policy accept;
        iifname @gateways oifname != @gateways masquerade fully-random comment "to the outside"
        iifname @gateways oifname @gateways ct status dnat masquerade fully-random \\
            comment "to a Service: its answer must come back here"
        oifname @gateways fib saddr type local fib saddr . oif type != local \\
            masquerade fully-random comment "from another address of the host"
    }
"""


def rules(gateways: Collection[str]) -> str:
    """What nft is to be told, in one transaction, for exactly these gateway devices."""
    if not gateways:
        return REMOVED
    names = [f'"{name}"' for name in sorted(gateways)]
    alone = ", ".join(names)
    pairs = ", ".join(f"{name} . {name}" for name in names)
    return (
        f"{REMOVED}"
        f"table {TABLE} {{\n"
        f"    set gateways {{ type ifname; elements = {{ {alone} }}; }}\n"
        f"    set same {{ type ifname . ifname; elements = {{ {pairs} }}; }}\n"
        f"{_CHAINS}"
        "}\n"
    )
