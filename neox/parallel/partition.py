"""Where DeepSpeed's ZeRO optimizers keep this rank's part of every parameter: masters and optimizer state, fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neox.config.schema import Config
from neox.parallel.adamw8bit import read
from neox.parallel.pieces import WEIGHT

NORM_NUMEL = 1 << 20
"""Numbers that are in fp64 at a time while the norm of the gradients is taken."""


class FlatPartition:
    """Stages 1 and 2: all parameters of a group laid end to end, and cut into as many parts as there are replicas."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero
        of_bf16 = getattr(zero, "fp32_groups_flat_partition", None)  # DeepSpeed's stage 1 has an optimizer for bf16
        self._flats = zero.single_partition_of_fp32_groups if of_bf16 is None else of_bf16

    @contextlib.contextmanager
    def optimizer_tensors(self) -> Iterator[None]:
        """While it lasts, the optimizer's groups hold the tensors that it steps on; here they always do."""
        yield

    def share_masters(self) -> None:
        """Lets weights that are fp32 be their own masters, of which DeepSpeed keeps a second copy; before `values`."""
        zero = self._zero
        flat = zip(zero.single_partition_of_fp32_groups, zero.parallel_partitioned_bit16_groups, strict=True)
        for (master, parts), group in zip(flat, zero.real_dp_process_group, strict=True):
            master.data = parts[dist.get_rank(group)].data
        zero._link_all_hp_params()

    def leave_gradients(self) -> None:
        """For one replica at stage 1 in fp32: DeepSpeed copies all gradients twice to sum them over a group of one.

        In 16 bits it is this copy that makes the sum fp32.
        """
        self._zero.reduce_ready_partitions_and_remove_grads = lambda parameter, group: None

    def measure_in_parts(self) -> None:
        """Has the norm of each gradient found from parts of it, of which DeepSpeed makes fp64 copies."""
        usual = self._zero.get_grad_norm_direct

        def measure(gradients: list[Tensor], parameters: list[nn.Parameter]) -> Tensor:
            pairs = zip(gradients, parameters, strict=False)  # padding may come after the last parameter's gradient
            parts = [(part, p) for gradient, p in pairs for part in gradient.flatten().split(NORM_NUMEL)]
            return usual(*zip(*parts, strict=True))

        self._zero.get_grad_norm_direct = measure

    def held(self, parameter: nn.Parameter) -> tuple[int, int] | None:
        """First element and number of elements of the flattened parameter that are here; None: there is none."""
        fragment = parameter._hp_mapping  # type: ignore[attr-defined]
        return fragment and (fragment.lp_fragment_address.start, fragment.lp_fragment_address.numel)

    def values(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """fp32 view of what is held: the master WEIGHT, or the state of that name; of what is quantized a copy."""
        flat, start, numel = self._place(parameter)
        return read(flat if kind == WEIGHT else self._zero.optimizer.state[flat][kind], start, numel)

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """fp32 view of the clipped gradient of what is held, while the optimizer steps on it; None at other times."""
        return stepped_gradient(self._zero.optimizer, *self._place(parameter))

    def _place(self, parameter: nn.Parameter) -> tuple[Tensor, int, int]:
        """The flat tensor, first element in it and number of elements."""
        fragment = parameter._hp_mapping  # type: ignore[attr-defined]
        address = fragment.hp_fragment_address
        return self._flats[fragment.param_group_index], address.start, address.numel

    def update_model(self) -> None:
        """The masters' values to the model's weights, on all ranks."""
        self._zero.update_lp_params()


class ShardedPartition:
    """Stage 3: every parameter is cut by itself, and the model holds no more than its parts between uses."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    @contextlib.contextmanager
    def optimizer_tensors(self) -> Iterator[None]:
        """While it lasts, the optimizer's groups hold the tensors that it steps on; else DeepSpeed deals them out."""
        self._zero._set_fp32_optimizer_param_groups()
        try:
            yield
        finally:
            self._zero._clear_fp32_optimizer_param_groups()

    def share_masters(self) -> None:
        """As of FlatPartition."""
        zero = self._zero
        for master, part in zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True):
            master.data = part.data

    def held(self, parameter: Any) -> tuple[int, int] | None:
        """As of FlatPartition; the last parts are padded to the length of the others."""
        start = parameter.ds_zero_partition_rank * parameter.partition_numel()
        numel = min(parameter.partition_numel(), parameter.ds_numel - start)
        return (start, numel) if numel > 0 else None

    def values(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """As of FlatPartition; on the host where the optimizer is."""
        flat, start, numel = self._place(parameter)
        return read(flat if kind == WEIGHT else self._zero.optimizer.state[flat][kind], start, numel)

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """As of FlatPartition."""
        return stepped_gradient(self._zero.optimizer, *self._place(parameter))

    def _place(self, parameter: nn.Parameter) -> tuple[Tensor, int, int]:
        """As of FlatPartition."""
        group, start, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
        held = self.held(parameter)
        assert held is not None
        return self._zero.fp32_partitioned_groups_flat[group], start, held[1]

    @torch.no_grad()
    def update_model(self) -> None:
        """The masters' values to the model's weights, on all ranks; what stays whole is gathered when next used."""
        zero = self._zero
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)


Partition = FlatPartition | ShardedPartition


def build_partition(cfg: Config, zero: Any) -> Partition:
    """Access to the state of DeepSpeed's optimizer, less the copies that it makes of fp32 needlessly."""
    partition: Partition = ShardedPartition(zero) if cfg.parallel.zero_stage == 3 else FlatPartition(zero)
    if cfg.train.precision == "fp32" and cfg.parallel.offload == "none":
        partition.share_masters()
        if isinstance(partition, FlatPartition) and cfg.parallel.zero_stage == cfg.parallel.dp == 1:
            partition.leave_gradients()
            partition.measure_in_parts()
    return partition


def stepped_gradient(optimizer: torch.optim.Optimizer, flat: Tensor, start: int, numel: int) -> Tensor | None:
    """Part of the gradient of `flat`, if that is what DeepSpeed, which goes from group to group, has stepped right now.

    Where the gradients are on the host those of the other groups exist too, not yet clipped.
    """
    is_stepped = any(flat is tensor for group in optimizer.param_groups for tensor in group["params"])
    return flat.grad[start : start + numel] if is_stepped and flat.grad is not None else None
