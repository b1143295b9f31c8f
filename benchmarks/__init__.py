"""What is fast and what is not, always beside a peer in the same run. `make bench BENCH=NAME`."""
