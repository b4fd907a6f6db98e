"""Which ZeRO stage goes with which layout and place of the optimizer."""

from __future__ import annotations

from neox.config.errors import UserError
from neox.config.schema import Config


def check_zero(config: Config) -> None:
    """What DeepSpeed cannot do together.

    Raises:
        UserError: naming the key and what is allowed.
    """
    parallel = config.parallel
    if parallel.pp > 1 and parallel.zero_stage > 1:
        raise UserError(f"parallel.zero_stage = {parallel.zero_stage}: needs parallel.pp = 1, not {parallel.pp}")
    if parallel.pp > 1 and parallel.offload != "none":
        raise UserError(f"parallel.offload = {parallel.offload}: needs parallel.pp = 1, not {parallel.pp}")
    if parallel.offload == "parameters" and parallel.zero_stage != 3:
        raise UserError(f"parallel.offload = parameters: needs parallel.zero_stage = 3, not {parallel.zero_stage}")
