"""Tensors of the pictures that were used last."""

import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class PictureCache:
    """A cache that threads may share; it forgets the pictures that were unused for longest.

    A data set asks about seven questions per image, and the cells of a grid ask the same questions.

    Attributes:
        num_bytes: Memory that the tensors take.
        num_added: Pictures that had to be computed.
    """

    def __init__(self, *, max_images: float = math.inf, max_bytes: float = math.inf) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[str, tuple[torch.Tensor, ...]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.num_added = 0

    @property
    def num_free_bytes(self) -> int:
        """Memory that further tensors may take; none where there is no limit."""
        return 0 if math.isinf(self._max_bytes) else int(self._max_bytes) - self.num_bytes

    def clear(self) -> None:
        """Forget all pictures."""
        with self._lock:
            self._pictures.clear()
            self.num_bytes = 0

    def limit(self, max_bytes: float) -> None:
        """Keep at most so many bytes from now on."""
        self.clear()
        self._max_bytes = max_bytes

    def get(self, key: str) -> "tuple[torch.Tensor, ...] | None":
        """Return the picture's tensors, or None."""
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def keep(self, key: str, *tensors: "torch.Tensor") -> None:
        """Add a picture and forget others where the limits ask for it."""
        with self._lock:
            if key in self._pictures:  # another thread has computed it meanwhile
                return
            self._pictures[key] = tensors
            self.num_added += 1
            self.num_bytes += sum(tensor.nbytes for tensor in tensors)
            while len(self._pictures) > self._max_images or self.num_bytes > self._max_bytes:
                _, oldest = self._pictures.popitem(last=False)
                self.num_bytes -= sum(tensor.nbytes for tensor in oldest)


class Patches(PictureCache):
    """Patches (P, D) and grid (3,) of each picture, of one processor with one pixel budget."""
