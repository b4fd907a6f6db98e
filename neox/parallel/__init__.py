"""Parallel training: rank arithmetic, the tensor-parallel table, the pipeline and the DeepSpeed engine."""

import logging
import warnings

# DeepSpeed says on every rank what hardware it found, which optimizer it wraps, …, from its import on. Only its errors
# are news to the user of this package, so the filter must stand before anything below imports it.
logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
# Said of the broadcast by which DeepSpeed makes tied weights equal before training; nothing differentiates through it.
warnings.filterwarnings("ignore", message=r"c10d::\w+: an autograd kernel was not registered")
