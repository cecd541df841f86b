"""Where the residual branches of a torch network end, told by tracing it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

_SUMS = (operator.add, operator.iadd, torch.add)
_SIZES = (getattr, "size", "dim")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul")


def branch_ends(network: nn.Module) -> list[nn.BatchNorm2d | nn.Conv2d]:
    """Return the last norm or convolution of each residual branch, the longer side of an addition, in graph order.

    Empty for a network that cannot be traced at all.
    """
    modules = dict(network.named_modules())
    depth: dict[fx.Node, int] = {}
    found: list[nn.BatchNorm2d | nn.Conv2d] = []
    try:
        graph = _Tracer().trace(network)
    except Exception:  # networks of libraries that look at their input; they keep their branches as they are
        return []
    for node in graph.nodes:
        depth[node] = 1 + max((depth[source] for source in node.all_input_nodes), default=0)
        if node.target in _SUMS:
            longer = max(node.all_input_nodes, key=lambda source: depth[source])
            found += _last_layers(longer, modules, depth)
    return list(dict.fromkeys(found))


class _Tracer(fx.Tracer):
    """Keeps norms and convolutions whole, those of libraries too, and the modules that look at their input."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.BatchNorm2d, nn.Conv2d)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        around = self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # as MobileViT's blocks, which choose by the size of their input
            self.module_stack = around
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def _last_layers(
    node: fx.Node, modules: dict[str, nn.Module], depth: dict[fx.Node, int]
) -> list[nn.BatchNorm2d | nn.Conv2d]:
    """Return the norms or convolutions that make a value, through what has no weights.

    Of joined values those of each, of a gate's product (squeeze-and-excitation) those of what is gated: the less deep.
    """
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, (nn.BatchNorm2d, nn.Conv2d)):
        return [module]
    weightless = module is None or not any(True for _ in module.parameters())
    computes = node.op in ("call_module", "call_function", "call_method") and node.target not in _SIZES
    if not computes or not weightless:
        return []
    sources = node.all_input_nodes
    if node.target in _PRODUCTS and sources:
        sources = [min(sources, key=lambda source: depth[source])]
    if len(sources) == 1 or node.target in (torch.cat, torch.concat):
        return [end for source in sources for end in _last_layers(source, modules, depth)]
    return []
