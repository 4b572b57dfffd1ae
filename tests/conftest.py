"""Four virtual CPU devices for every test, set before jax starts."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
# Without more threads than devices, virtual devices can wait for each other for ever.
os.environ["NPROC"] = "8"
os.environ["JAX_PLATFORMS"] = "cpu"
