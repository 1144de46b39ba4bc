"""Augmentations of training pictures: one module each, chosen by name (`augment.type`).

The contract of a module:

- a frozen dataclass `Options`, each field with its meaning and unit beneath it;
- `build(options) -> Callable[[Tensor], Tensor]`: the operation maps one uint8 picture (3, height, width) to a uint8
  picture of the same size. It draws only from the global generators of Python, numpy and torch, which the
  loader seeds per (seed, epoch, position) before each call, so that a picture's augmentation does not depend on how
  the batch was cut or on the number of workers.
"""
