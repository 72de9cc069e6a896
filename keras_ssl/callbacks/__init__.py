"""Callbacks for `fit`."""

from keras_ssl.callbacks.collapse_monitor import CollapseMonitor
from keras_ssl.callbacks.knn_evaluation import KNNEvaluation
from keras_ssl.callbacks.linear_probe import LinearProbe
from keras_ssl.callbacks.online_evaluation import OnlineEvaluation
from keras_ssl.callbacks.pictures import PicturePlot, ReconstructionPlot, ViewsPlot

__all__ = [
    "CollapseMonitor",
    "KNNEvaluation",
    "LinearProbe",
    "OnlineEvaluation",
    "PicturePlot",
    "ReconstructionPlot",
    "ViewsPlot",
]
