"""A run's curves in TensorBoard, Weights & Biases and MLflow."""

from iris_ray.tracking.tracking import Tracking, check_trackers

__all__ = ["Tracking", "check_trackers"]
