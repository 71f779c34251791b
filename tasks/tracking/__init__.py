"""MLflow: runs, logged models, plots. Nothing here can change an artifact."""
