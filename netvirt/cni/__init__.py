"""The agent's side of CNI: what runtimes ask of it through the program in `plugins/cni`."""
