"""Pictures."""

from keras_ssl.visualization.attention import attention_grid, attention_maps, heat_map
from keras_ssl.visualization.embedding_map import embedding_map
from keras_ssl.visualization.features import feature_pca, feature_pca_grid
from keras_ssl.visualization.neighbours import neighbour_grid
from keras_ssl.visualization.pictures import picture_grid, reconstruction_grid
from keras_ssl.visualization.views import views_grid

__all__ = [
    "attention_grid",
    "attention_maps",
    "embedding_map",
    "feature_pca",
    "feature_pca_grid",
    "heat_map",
    "neighbour_grid",
    "picture_grid",
    "reconstruction_grid",
    "views_grid",
]
