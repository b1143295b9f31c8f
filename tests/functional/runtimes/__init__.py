"""Container runtimes in lab hosts, as their users run them: containerd, podman, and their CNI.

`images` makes what they run, `cri` speaks to containerd as a kubelet does, `containerd` and
`podman` put the runtime in a host, `conflist` what they read in /etc/cni/net.d, `leftovers` looks
whether all is as it was. Nothing here knows which CNI plugin is used.
"""
