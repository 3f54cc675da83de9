"""``python -m ich_node``."""

from ich_node.cli import main

main()
