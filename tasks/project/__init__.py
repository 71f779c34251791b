"""The project's own files: where they are, the graph, params.yaml."""
