"""What runs in a worker pod: reads records, runs the model, commits checkpoints."""
