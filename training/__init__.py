"""Training, evaluation and release of the networks that `ich_node.model` reads with."""
