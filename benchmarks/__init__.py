"""Studies and measurements that are no part of the service itself."""
