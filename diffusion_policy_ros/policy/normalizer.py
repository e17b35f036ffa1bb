"""Robot numbers to [-1, 1] and back, by the smallest and largest value of the training set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

MIN_RANGE = 1e-4


class Normalizer(nn.Module):
    """
    Min-max scaling for each named vector, kept in float64.

    A dimension that hardly moves in the training set (less than `MIN_RANGE` from end to end) keeps
    its unit and has its centre subtracted, so that noise is not blown up to full scale. On the way
    back [-1, 1] is what the training set has of it too, so that the network's error in it is none.

    Args:
        dims: name to length; the values come from `fit` or from a checkpoint.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.dims = dict(dims)
        for name, dim in self.dims.items():
            for bound in ('min', 'max'):
                self.register_buffer(f'{name}_{bound}',
                                     torch.full((dim,), torch.nan, dtype=torch.float64))

    @classmethod
    def fit(cls, arrays: Mapping[str, np.ndarray]) -> Normalizer:
        """
        Take the bounds from arrays of shape (..., dim), one a name.

        Raises:
            ValueError: an array is empty or not finite.
        """
        normalizer = cls({name: array.shape[-1] for name, array in arrays.items()})
        for name, array in arrays.items():
            rows = np.asarray(array, dtype=np.float64).reshape(-1, array.shape[-1])
            if not len(rows) or not np.isfinite(rows).all():
                raise ValueError(f'normalizer: {name} is empty or not finite, expected numbers')
            getattr(normalizer, f'{name}_min').copy_(torch.from_numpy(rows.min(axis=0)))
            getattr(normalizer, f'{name}_max').copy_(torch.from_numpy(rows.max(axis=0)))
        return normalizer

    def normalize(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """
        Map (..., dim) to the network's float32.

        Raises:
            ValueError: there are no bounds of that name, or they have another length.
        """
        centre, half_range = self._centre_and_half_range(name, value)
        hardly_moves = 2 * half_range < MIN_RANGE
        return ((value - centre) / half_range.masked_fill(hardly_moves, 1)).float()

    def unnormalize(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Map the network's (..., dim) back to float64; raises as `normalize` does."""
        centre, half_range = self._centre_and_half_range(name, value)
        return value.double() * half_range + centre

    def _centre_and_half_range(self, name: str,
                               value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if name not in self.dims:
            raise ValueError(f'normalizer: it has no {name!r}, only {", ".join(self.dims)}')
        if value.shape[-1] != self.dims[name]:
            raise ValueError(f'normalizer: {name} has {value.shape[-1]} numbers, '
                             f'expected {self.dims[name]}')
        low, high = getattr(self, f'{name}_min'), getattr(self, f'{name}_max')
        return (low + high) / 2, (high - low) / 2
