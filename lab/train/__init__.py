"""Training: state, step, pack executor, sharding, checkpoint, evaluation."""
