"""Checkpoints: modules, their optimizer, and plain values in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from slidescreen.atomic import replacing
from slidescreen.errors import ModelError, OutputError


def save_checkpoint(
    path: Path,
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Written beside its place and renamed: a killed run leaves the last whole checkpoint.

    `state` and `settings`: plain values; the latter must be the same when training goes on.

    Raises OutputError when it cannot be written, for instance on a full disk.
    """
    kept = optimizer.state_dict()
    tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, values in kept["state"].items() for k, v in values.items()}
    plain = {"state": dict(state), "settings": dict(settings), "groups": kept["param_groups"]}
    try:
        with replacing(path) as partial:
            whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_file(whole, partial, {"plain": json.dumps(plain)})
    except (OutputError, SafetensorError) as error:
        raise OutputError(f"{error}; the checkpoint before it is kept") from error


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Fill modules and optimizer and return the state; {} where there is no checkpoint.

    Raises ModelError when it cannot be read, or is of other `settings`.
    """
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            kept = json.loads(file.metadata()["plain"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read as a checkpoint ({error}); remove it to start again") from error
    if kept["settings"] != json.loads(json.dumps(dict(settings))):
        raise ModelError(f"{path}: is a checkpoint of other settings; choose another folder, or remove it")
    for name, module in modules.items():
        module.load_state_dict(_part(tensors, f"{name}."))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": kept["groups"]})
    _lay_out_as_parameters(optimizer)
    return dict(kept["state"])


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their parameters: fused optimizers walk through both side by side, whatever theirs."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)


def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average of the weights towards the network's, statistics of normalisation included."""
    with torch.no_grad():
        for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
