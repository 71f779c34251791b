"""MLflow runs, logged models and plots, without influence on artifacts."""
