"""Node: where it is, which packages it gets, and what a run of its tests proves."""

from ptc_worker.node.installed import NodeMissingError
from ptc_worker.node.runner import run_node_tests

__all__ = ["NodeMissingError", "run_node_tests"]
