"""The training loop: schedule, metrics, stopping, resuming."""
