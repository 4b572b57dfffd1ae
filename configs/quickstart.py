from emnist_jax import config as config_lib


def get_config():
    config = config_lib.base()
    config.training.batch_size = 64
    config.training.epochs = 2.0
    config.optimizer.learning_rate = 0.05
    return config
