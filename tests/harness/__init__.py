"""Whole clusters for tests: hosts with namespaces of their own (`scripts/hosts`), a node on each, and what tests ask.

The process of the tests itself never touches a mount: everything on `/ks` happens in processes inside a host, each with
a deadline, so that a file system that hangs fails a test and does not hang the tests.
"""

from .cluster import Cluster, live_clusters
from .hosts import REPOSITORY, Hosts, HostsError, processes_with
from .node import Completed, Node
from .waiting import wait_for

__all__ = [
    "REPOSITORY",
    "Cluster",
    "Completed",
    "Hosts",
    "HostsError",
    "Node",
    "live_clusters",
    "processes_with",
    "wait_for",
]
