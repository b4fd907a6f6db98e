"""A rank's place from the variables of MPI's launchers, and what these do not carry to other nodes."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# In the order of NAMES. MVAPICH2 and Cray PALS also set PMI_RANK, so Hydra, whose ranks have nothing else, is the last.
FAMILIES = {
    "Open MPI": tuple(f"OMPI_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "MVAPICH2": tuple(f"MV2_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "Cray PALS": ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    "Hydra (MPICH, Intel MPI)": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
BINARY_INTERFACE = "MPI4PY_MPIABI"
"""Tells mpi4py which library its ranks were started with; where two are installed it may take the other."""


def place(environ: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE of this process. Raises UserError outside of an MPI launch."""
    for words in FAMILIES.values():
        if all(word in environ for word in words):
            return {name: environ[word] for name, word in zip(NAMES, words, strict=True)}
    raise UserError(f"no rank of an MPI launcher: none has set its variables; known: {', '.join(FAMILIES)}")


def rank_environment(launched: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The launch's environment, with what the MPI launcher has added for this rank, and the rank's place."""
    interface = "openmpi" if FAMILIES["Open MPI"][0] in environ else "mpich"
    return {BINARY_INTERFACE: interface, **environ, **launched, **place(environ)}
