"""`python -m roma_bridge.cli` is `ptc-enqueue`."""

from roma_bridge.cli.main import main

main()
