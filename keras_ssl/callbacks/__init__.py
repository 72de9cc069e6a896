"""Callbacks for `fit`."""

from keras_ssl.callbacks.collapse_monitor import CollapseMonitor

__all__ = ["CollapseMonitor"]
