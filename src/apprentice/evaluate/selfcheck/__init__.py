"""Is the simulator the one that results rely on, and is a policy whole? Found out before hours are spent."""
