"""What the benchmark compares: one network doing one task, in emnist_jax and in PyTorch.

A contender is a function of a `Setting`. It returns `run(batches)`, which returns once so many batches are done. Images
are random bytes and lie on the device in all of them but `pytorch_dataloader`. The logits of inference end on the host.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from emnist_jax.environment import cores

TASKS = ("training", "augmented training", "inference")
SIDE = 28
NUM_EXAMPLES = 8192
ROTATION_DEGREES, SHIFT_PIXELS = 10.0, 2.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is timed.

    Attributes:
      model: Key of `models.MODELS`.
      batch_size: Images of a batch.
      task: One of TASKS.
      dtype: Of the computation, "float32" or "bfloat16".
      platform: Of JAX: "cpu" or "gpu". PyTorch takes the same.
    """

    model: str
    batch_size: int
    task: str
    dtype: str = "float32"
    platform: str = "cpu"

    @property
    def num_classes(self) -> int:
        return 10 if self.model.startswith("mnist_") else 47

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns uint8 images `[N, 28, 28]` and int32 labels `[N]`; N is a multiple of the batch."""
        rng = np.random.default_rng(0)
        size = -(-NUM_EXAMPLES // self.batch_size) * self.batch_size
        return (
            rng.integers(0, 256, (size, SIDE, SIDE), np.uint8),
            rng.integers(0, self.num_classes, size, np.int32),
        )


def emnist_jax(setting: Setting) -> Callable[[int], None]:
    """The programs of training and evaluation, as runs use them."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from emnist_jax import models
    from emnist_jax.config import base
    from emnist_jax.training import evaluation, optimizers, train_step

    config = base()
    config.model.name, config.model.dtype = setting.model, setting.dtype
    config.training.batch_size = config.evaluation.batch_size = setting.batch_size
    if setting.task == "augmented training":
        config.augmentation.max_rotation_degrees = ROTATION_DEGREES
        config.augmentation.max_shift_pixels = SHIFT_PIXELS
    images, labels = setting.examples()
    mesh = train_step.make_mesh()
    model = models.create(config.model, setting.num_classes, train_step.AXIS)
    optimizer, _ = optimizers.make_optimizer(config, 1000, len(labels) // setting.batch_size)
    state = train_step.make_initial_state(model, optimizer, config, mesh)(jax.random.key(0))

    if setting.task == "inference":
        evaluator = evaluation.Evaluator(model, config, mesh, state.variables, images.shape[1:], len(labels))
        batches = evaluator.batches(images)

        def run(count: int) -> None:
            evaluator.logits(state.variables, [batches[i % len(batches)] for i in range(count)], count)

        return run

    images, labels = train_step.to_devices((images, labels), NamedSharding(mesh, P()))
    order = train_step.make_epoch_order(len(labels), setting.batch_size, mesh)(jax.random.key(0), 0)
    train_steps = train_step.make_train_steps(model, optimizer, config, mesh)

    def run(count: int) -> None:
        nonlocal state
        state = train_steps(state, images, labels, order, jax.random.key(1), 1.0, count)
        jax.block_until_ready(state)

    return run


class _PyTorch:
    """A network on the device, and its optimizer.

    Attributes:
      device: Of PyTorch.
    """

    def __init__(self, setting: Setting, channels_last: bool = False, compiled: bool = False):
        import torch

        from emnist_jax.benchmarking import pytorch_networks
        from emnist_jax.models import MODELS

        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX's default there
        torch.backends.cudnn.benchmark = True  # convolutions chosen by speed, as XLA chooses them
        self._on_gpu = setting.platform != "cpu"
        self._bfloat16 = setting.dtype == "bfloat16"
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.device = torch.device("cuda" if self._on_gpu else "cpu")
        network = pytorch_networks.create(setting.model, setting.num_classes)
        network = network.to(self.device, memory_format=self._memory_format).train(setting.task != "inference")
        height, _, self._channels = MODELS[setting.model](num_classes=setting.num_classes).input_shape
        self._pad = (height - SIDE) // 2
        self._optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
        self._network = torch.compile(network) if compiled else network

    def logits(self, x):
        """Takes images in 0 to 1, `[B, 28, 28]`."""
        import torch

        x = (torch.nn.functional.pad(x, (self._pad,) * 4) - 0.1307) / 0.3081
        x = x[:, None].expand(-1, self._channels, -1, -1).contiguous(memory_format=self._memory_format)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            return self._network(x)

    def update(self, x, labels) -> None:
        """Does one step of SGD with Nesterov's momentum."""
        import torch

        self._optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(self.logits(x).float(), labels).backward()
        self._optimizer.step()

    def wait(self) -> None:
        """Returns once the device has done everything."""
        import torch

        if self._on_gpu:
            torch.cuda.synchronize()


def pytorch(setting: Setting, channels_last: bool = False, compiled: bool = False) -> Callable[[int], None]:
    """PyTorch with the images on the device and, if augmented, warped there as one batch."""
    import torch
    from torch.nn import functional as F

    network = _PyTorch(setting, channels_last, compiled)
    images, labels = (torch.from_numpy(array).to(network.device) for array in setting.examples())
    labels = labels.long()

    if setting.task == "inference":

        @torch.inference_mode()
        def run(count: int) -> None:
            starts = [i * setting.batch_size % len(images) for i in range(count)]
            outputs = [network.logits(images[i : i + setting.batch_size].float() / 255) for i in starts]
            for output in outputs:
                output.cpu()

        return run

    def warp(x):
        def uniform(*shape: int, most: float):
            return torch.empty(*shape, device=network.device).uniform_(-most, most)

        radians = uniform(len(x), most=np.deg2rad(ROTATION_DEGREES))
        shift = uniform(len(x), 2, most=2 * SHIFT_PIXELS / SIDE)  # affine_grid's unit is half of the image
        cos, sin = radians.cos(), radians.sin()
        matrices = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(-1, 2, 3)
        grid = F.affine_grid(matrices, [len(x), 1, SIDE, SIDE], align_corners=False)
        return F.grid_sample(x[:, None], grid, align_corners=False)[:, 0]

    def run(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(len(images), (setting.batch_size,), device=network.device)
            x = images[rows].float() / 255
            network.update(warp(x) if setting.task == "augmented training" else x, labels[rows])
        network.wait()

    return run


def pytorch_channels_last(setting: Setting) -> Callable[[int], None]:
    """PyTorch with channels as the last axis in memory."""
    return pytorch(setting, channels_last=True)


def pytorch_compiled(setting: Setting) -> Callable[[int], None]:
    """`torch.compile` of the network, with channels as the last axis in memory."""
    return pytorch(setting, channels_last=True, compiled=True)


class _Examples:
    """A data set of PyTorch that warps one image at a time with Pillow, as torchvision's transforms do."""

    def __init__(self, setting: Setting):
        self.images, self.labels = setting.examples()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        import torch
        from PIL import Image

        degrees = float(torch.empty(1).uniform_(-ROTATION_DEGREES, ROTATION_DEGREES))
        shift = torch.empty(2).uniform_(-SHIFT_PIXELS, SHIFT_PIXELS).tolist()
        image = Image.fromarray(self.images[i]).rotate(degrees, Image.Resampling.BILINEAR, translate=shift)
        return torch.from_numpy(np.array(image)).float() / 255, int(self.labels[i])


def pytorch_dataloader(setting: Setting) -> Callable[[int], None]:
    """PyTorch as the sources train: a DataLoader, whose workers warp one image at a time."""
    import torch

    network = _PyTorch(setting)
    loader = torch.utils.data.DataLoader(
        _Examples(setting), setting.batch_size, shuffle=True, num_workers=cores(), persistent_workers=True
    )

    def endless():
        while True:
            yield from loader

    batches = endless()

    def run(count: int) -> None:
        for _ in range(count):
            x, labels = next(batches)
            network.update(x.to(network.device), labels.to(network.device))
        network.wait()

    return run


# Of all tasks, and of augmented training alone.
CONTENDERS = (emnist_jax, pytorch, pytorch_channels_last, pytorch_compiled)
SOURCES_WAY = pytorch_dataloader
