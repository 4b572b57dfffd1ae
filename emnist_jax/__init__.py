"""Reference JAX/Flax reimplementations of published MNIST and EMNIST classifiers."""

__version__ = "0.1.0"
