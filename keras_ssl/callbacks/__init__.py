"""Callbacks for `fit`."""

from keras_ssl.callbacks.boards import TensorBoardLog, WandbLog
from keras_ssl.callbacks.checkpoint import Checkpoint
from keras_ssl.callbacks.collapse_monitor import CollapseMonitor
from keras_ssl.callbacks.knn_evaluation import KNNEvaluation
from keras_ssl.callbacks.linear_probe import LinearProbe
from keras_ssl.callbacks.log_file import LogFile
from keras_ssl.callbacks.online_evaluation import OnlineEvaluation
from keras_ssl.callbacks.pictures import (
    AttentionPlot,
    PicturePlot,
    ReconstructionPlot,
    ViewsPlot,
)
from keras_ssl.callbacks.progress import Progress
from keras_ssl.training.finite_steps import FiniteSteps, NonFiniteError

__all__ = [
    "AttentionPlot",
    "Checkpoint",
    "CollapseMonitor",
    "FiniteSteps",
    "KNNEvaluation",
    "LinearProbe",
    "LogFile",
    "NonFiniteError",
    "OnlineEvaluation",
    "PicturePlot",
    "Progress",
    "ReconstructionPlot",
    "TensorBoardLog",
    "ViewsPlot",
    "WandbLog",
]
