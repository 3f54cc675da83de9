"""What people see in a browser: the worklist, one study with its overlays, and health for monitors."""

from ich_node.web.app import create_app

__all__ = ["create_app"]
