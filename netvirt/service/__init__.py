"""Operations on networks, ports and hosts: what the commands, the CNI program and scripts call.

Each is one transaction on the fabric database, done or not done, and safe to repeat.
"""
