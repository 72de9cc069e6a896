"""Pictures."""

from keras_ssl.visualization.pictures import picture_grid, reconstruction_grid
from keras_ssl.visualization.views import views_grid

__all__ = ["picture_grid", "reconstruction_grid", "views_grid"]
