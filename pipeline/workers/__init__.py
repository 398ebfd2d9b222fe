"""Workers: a process a device on this machine, or an actor a share of a Ray cluster; how work is spread over them."""
