"""Trains and tests: `python -m emnist_jax.main --config=configs/densenet.py [--config.KEY=VALUE ...]`."""

from pathlib import Path

from absl import flags

from emnist_jax import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/NAME_OF_THE_CONFIG")


def main(config) -> None:
    # Imported late: flag errors should not wait for it.
    from emnist_jax import loop

    loop.train_and_evaluate(config, Path(_WORKDIR.value or f"runs/{command_line.config_name()}"))


if __name__ == "__main__":
    command_line.run(main)
