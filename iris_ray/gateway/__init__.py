"""HTTP for one run: to look at it, steer it and talk to its policy."""
