"""Results out: to each destination, until it has answered for every object."""
