"""The node agent: what it knows, what follows from that, and the loop that acts.

`knowledge`, `topology`, `interest` and `bindings` decide and are pure; `agent` acts.
"""
