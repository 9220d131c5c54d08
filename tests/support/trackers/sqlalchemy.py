"""What the whole of mlflow brings along."""
