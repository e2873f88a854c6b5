"""Image patches of the pictures that were used last."""

import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Patches:
    """A cache of patches and grids that threads may share.

    All are of one processor with one pixel budget. A data set asks about seven questions per
    image, and the cells of a grid ask the same questions.
    """

    def __init__(self, *, max_images: float = math.inf, max_bytes: float = math.inf) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0  # host memory that the patches take

    def clear(self) -> None:
        """Forget all pictures."""
        with self._lock:
            self._pictures.clear()
            self.num_bytes = 0

    def get(self, key: str) -> "tuple[torch.Tensor, torch.Tensor] | None":
        """Return patches (P, D) and grid (3,), or None."""
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def keep(self, key: str, values: "torch.Tensor", grid: "torch.Tensor") -> None:
        """Add a picture and forget those that were unused for longest."""
        with self._lock:
            if key in self._pictures:  # another thread has encoded it meanwhile
                return
            self._pictures[key] = values, grid
            self.num_bytes += values.nbytes
            while len(self._pictures) > self._max_images or self.num_bytes > self._max_bytes:
                _, (oldest, _) = self._pictures.popitem(last=False)
                self.num_bytes -= oldest.nbytes
