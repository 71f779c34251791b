"""Collection of garbage: what no alias, registered version, ref or recent run needs."""
