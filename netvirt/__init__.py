"""Tenant networks on Open vSwitch: containers and VMs on the same overlay.

The river runs one way: `model` says what things are, `admit` and `allocate` decide what a request
becomes, `service` writes it to the fabric database; on every host `agent` follows the database,
`compile` turns what it sees into flows by way of `pipeline`, and `backends` put them in the switch.
"""
