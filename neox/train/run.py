"""A run from its configuration to its exit code: ranks meet, the newest checkpoint is taken over, the loop runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neox.checkpoint.mirror import mirror_of
from neox.checkpoint.ranks import SaveError
from neox.checkpoint.restore import restore
from neox.checkpoint.resume import take_over
from neox.config.errors import UserError
from neox.config.schema import Config
from neox.data.parts import Parts, check_same_data
from neox.parallel.engine import Engine
from neox.parallel.topology import Topology
from neox.train.determinism import make_deterministic
from neox.train.directory import RunDirectory
from neox.train.inputs import build_inputs
from neox.train.loop import FINISHED, Loop
from neox.train.stop import StopRequest


def train(
    cfg: Config,
    run: RunDirectory,
    parts: Parts,
    stop: StopRequest,
    sources: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> int:
    """Trains from the latest checkpoint, or the beginning, to the end or until asked to stop; every rank calls it.

    Args:
        cfg: resolved for the number of ranks. sources, overrides: what it was made from, kept with the run.
        parts: the data, checked against `cfg` and the latest checkpoint.

    Returns:
        FINISHED; RUN_AGAIN when the state was saved before the end; FAILED when a bad step ended the run.

    Raises:
        UserError: the index maps cannot be made, or the checkpoint does not fit the model.
        SaveError: a checkpoint could not be written, or a later start took the run over.
    """
    make_deterministic(cfg.train.seed)
    assert cfg.parallel.dp is not None
    engine = Engine(cfg, Topology(cfg.parallel.dp, cfg.parallel.tp, cfg.parallel.pp))
    stop.catch_signals()
    try:
        loop = begin(cfg, run, parts, engine, sources, overrides)
        with loop.mirror:
            with loop.watchdog:
                code = loop.run_steps(stop)
            stop.ignore_signals()
            engine.barrier()
            engine.close()
            # Before it ends otherwise, `run_steps` waited: a launcher may end this rank when the others have exited.
            if code == FINISHED and not loop.mirror.finish():
                loop.journal.say(f"warning: not all checkpoints are copied to {cfg.checkpoint.mirror}")
    except (UserError, SaveError):  # on every rank alike
        engine.close()  # a process that ends with the group open may be aborted by gloo's threads
        raise
    return code


def begin(
    cfg: Config,
    run: RunDirectory,
    parts: Parts,
    engine: Engine,
    sources: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> Loop:
    """The loop where the newest intact checkpoint left it, with its directory and logs ready; as `train`."""
    inputs = build_inputs(cfg, parts, engine)
    run.store = take_over(run.store, engine)
    bring_back(cfg, run, engine)
    loop = Loop(cfg, run, engine, inputs)
    state = loop.resume()
    if state is not None:  # where the newest checkpoint is damaged, that of an older one than `parts` were checked with
        check_same_data(cfg, parts.train, state)
    mistake = None
    if engine.rank == 0:
        run.prepare(cfg, sources, overrides, loop.step)
        try:
            loop.journal.open(loop.step)
        except UserError as error:
            mistake = str(error)
    engine.agree(mistake)
    return loop


def bring_back(cfg: Config, run: RunDirectory, engine: Engine) -> None:
    """Fetches the newest checkpoint from where the run is copied to, if it is newer; every rank calls it.

    Raises:
        UserError: on every rank: it cannot be had, or is of a run that is another in what must not change.
    """
    source = mirror_of(cfg.checkpoint, run.folder)
    if source is None:
        return
    restore(run.store, source, engine, lambda line: print(line, flush=True) if engine.rank == 0 else None)
    mistake = None
    if engine.rank == 0:
        try:
            run.check(cfg)
        except UserError as error:
            mistake = str(error)
    engine.agree(mistake)
