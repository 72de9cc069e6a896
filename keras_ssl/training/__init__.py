"""What runs around a training step; the only place that may ask for the backend."""
