"""The project's own files: their paths, the stage graph, params.yaml."""
