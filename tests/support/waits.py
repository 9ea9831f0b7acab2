"""Which operations of a computation would make the host wait for a GPU: found on a CPU, where they cost nothing."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")


class Waits(TorchDispatchMode):
    """Counts scalar reads, nonzero and boolean indexing while it is entered; `found` says how many of each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        if any(w in name for w in WAITS):
            self.found[name] += 1
        if name.startswith("index"):  # with booleans; index_select and index_add have none
            indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
            if any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in indices):
                self.found["boolean index"] += 1
        return func(*args, **(kwargs or {}))
