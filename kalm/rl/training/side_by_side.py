"""S policies in the module of one: every parameter becomes a stack of S, which ``torch.func`` takes apart again.

No network and no loss knows of it: ``torch.func.vmap`` runs the code of one policy on all of them at once, and each
product of a matrix becomes one batched product. Adam, target networks and averages work number by number, so that on
stacks they do what they would do on each policy alone.

In a stack matrices lie transposed: the gradient of a batched product then comes out in the layout of its parameter,
where it would otherwise be copied, which costs a fifth of an update on a processor.

Shape letters: S policies (seeds), B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kalm.rl.training.optimization import AVERAGE
from kalm.runs.checkpoint_io import POLICY


class MethodCall(nn.Module):
    """One method of a module, or any function that uses it, as a function of the module's parameters."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        """Choose the method."""
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


def stack_parameters(module: nn.Module, policies: Sequence[Mapping[str, Tensor]]) -> None:
    """Put stacks of each policy's, by name, in the place of a module's parameters; its buffers serve all policies."""
    for name, parameter in list(module.named_parameters()):
        path, _, leaf = name.rpartition(".")
        stack = _turned(torch.stack([policy[name].detach() for policy in policies])).contiguous()
        setattr(module.get_submodule(path), leaf, nn.Parameter(stack, requires_grad=parameter.requires_grad))


def policy_of(stacks: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """The parameters of one policy, by name and in the shapes that its networks know; they share the stacks' memory."""
    return {name: _turned(stack)[number] for name, stack in stacks.items()}


def side_by_side(
    module: nn.Module, losses: Callable[[Any], Sequence[dict[str, Tensor]]], num_policies: int
) -> Callable[[Any], Sequence[dict[str, Tensor]]]:
    """The losses of S policies, whose stacks ``module`` holds, each on its own minibatch.

    ``losses`` reads one minibatch, a data class of tensors (B, ...), and returns dictionaries of such tensors; the same
    function of the S minibatches one after the other, (S * B, ...), is returned.
    """
    call, stacks = MethodCall(module, losses), dict(module.named_parameters())

    def of_all(batch: Any) -> Sequence[dict[str, Tensor]]:
        # The weight is for whoever adds the losses up; vmap takes no None.
        names = [field.name for field in fields(batch) if field.name != "weight"]
        values = {name: getattr(batch, name).unflatten(0, (num_policies, -1)) for name in names}

        def of_one(parameters: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Any:
            return call.using(parameters, type(batch)(**own))

        parameters = {name: _turned(stack) for name, stack in stacks.items()}
        parts = torch.func.vmap(of_one)(parameters, values)
        return [{name: value.flatten(0, 1) for name, value in part.items()} for part in parts]

    return of_all


def checkpoint_of(checkpoint: Mapping[str, Any], stacked: Collection[str], number: int) -> dict[str, Any]:
    """The checkpoint that policy ``number`` would have written alone, but for what callbacks keep.

    Tensors of S policies whose names are not in ``stacked`` serve all policies; ``checkpoint`` stays as it is.
    """
    own = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in stacked}
    result = {
        **checkpoint,
        "state_dict": {**checkpoint["state_dict"], **_copies(own, number)},
        "optimizer_states": [_optimizer_state_of(state, number) for state in checkpoint["optimizer_states"]],
        POLICY: {key: value for key, value in checkpoint[POLICY].items() if key != "num_seeds"},
    }
    if AVERAGE in checkpoint:
        result[AVERAGE] = _copies(checkpoint[AVERAGE], number)
    return result


def _optimizer_state_of(state: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What an optimizer keeps is laid out as its parameter is, but for numbers such as a count of steps."""
    of_parameter = {
        index: {**kept, **_copies({name: value for name, value in kept.items() if value.ndim}, number)}
        for index, kept in state["state"].items()
    }
    return {**state, "state": of_parameter}


def _copies(stacks: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """One policy's part, in memory of its own."""
    parts = policy_of(stacks, number)
    return {name: part.clone(memory_format=torch.contiguous_format) for name, part in parts.items()}


def _turned(stack: Tensor) -> Tensor:
    """From the layout of a network's matrix to that of a stack, or back."""
    return stack.transpose(1, 2) if stack.ndim == 3 else stack
