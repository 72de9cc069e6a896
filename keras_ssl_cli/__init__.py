"""The command `keras-ssl`.

A package of its own: importing anything below `keras_ssl` imports Keras, which reads the
backend from the environment at once; and `--help` should not wait for it.
"""
