"""Calls of a module's method with other tensors in the place of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class MethodCall(nn.Module):
    """One method of a module as a function of the module's parameters."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        """Choose the method.

        Args:
            module: Whose parameters to replace during a call.
            method: A method of it, or any function that uses it.
        """
        super().__init__()
        self.module = module
        self._method = method

    def forward(self, *args: Any) -> Any:
        """Call the method with the parameters as they are."""
        return self._method(*args)

    def using(self, parameters: Mapping[str, Tensor], *args: Any) -> Any:
        """Call the method with ``parameters``, by name, in the place of the module's; the others stay."""
        prefixed = {f"module.{name}": tensor for name, tensor in parameters.items()}
        return functional_call(self, prefixed, args, tie_weights=False)
