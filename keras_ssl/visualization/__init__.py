"""Pictures."""

from keras_ssl.visualization.pictures import picture_grid, reconstruction_grid

__all__ = ["picture_grid", "reconstruction_grid"]
