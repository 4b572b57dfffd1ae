"""Evaluation on all images of a split: logits, then metrics."""

from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emnist_jax.models.layers import Network
from emnist_jax.training.train_step import AXIS, Metrics, compiler_options, network_input, to_devices


class Evaluator:
    """A network compiled for evaluation, once, for splits of any size.

    Args:
      model: The network.
      config: The whole config.
      mesh: Of the devices that share a batch.
      variables: Parameters and batch_stats, or their shapes.
      image_shape: Height and width of the stored images.
      most_examples: Of the largest split.
    """

    def __init__(self, model: Network, config, mesh: Mesh, variables, image_shape: tuple[int, int], most_examples: int):
        devices, model = mesh.devices.size, model.for_inference
        self.batch_size = -(-min(config.evaluation.batch_size, most_examples) // devices) * devices
        self._sharding = NamedSharding(mesh, P(AXIS))

        @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS))
        def forward(variables, images):
            return model.apply(variables, network_input(images, config, model.input_shape), train=False)

        shape = jax.ShapeDtypeStruct((self.batch_size, *image_shape), np.uint8, sharding=self._sharding)
        # Every process gets all logits.
        forward = jax.jit(forward, out_shardings=NamedSharding(mesh, P()), compiler_options=compiler_options(config))
        self._forward = forward.lower(variables, shape).compile()

    def batches(self, images: np.ndarray) -> list[jax.Array]:
        """Copies uint8 images `[N, H, W]` to the devices, in batches; the last one is filled up with zeros."""
        filler = np.zeros((-len(images) % self.batch_size, *images.shape[1:]), np.uint8)
        images = np.concatenate([images, filler])
        return [
            to_devices(images[i : i + self.batch_size], self._sharding) for i in range(0, len(images), self.batch_size)
        ]

    def logits(self, variables, batches: list[jax.Array], num_examples: int) -> np.ndarray:
        """Runs the network on `batches`: float32 logits `[num_examples, num_classes]`."""
        outputs = [self._forward(variables, batch) for batch in batches]
        return np.concatenate([np.asarray(output) for output in outputs])[:num_examples]


@jax.jit
def _metrics(logits, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Metrics.from_logits(logits, labels, losses).compute()


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns mean `loss`, `top1` and `top5` (fractions), and the number of `examples` they are of."""
    examples = len(labels)
    values = {name: float(value) for name, value in _metrics(logits, labels).items()}
    # The accuracies are counts: this takes float32's rounding off them.
    accuracies = {name: round(values[name] * examples) / examples for name in ("top1", "top5")}
    return {**values, **accuracies, "examples": examples}
