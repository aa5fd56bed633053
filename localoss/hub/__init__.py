"""`localoss pull`: models from the hub, or from files that other programs keep on this machine."""
