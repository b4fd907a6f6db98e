"""Sweeps a site's knobs inside one allocation: every round times all candidates, in an order of its own."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from jobs import launcher
from jobs.errors import UserError
from jobs.ranking import CONFIDENCE, Ranked, least_rounds, rank
from jobs.site import Site
from jobs.warning import SAVED

OUTPUT = "{output}"
"""Stands in the command for the file it leaves its time in, JSON with the key step_s."""
TRIAL_TIMEOUT_S = 300
"""A setting that makes the ranks wait for ever counts as one that does not work."""
ENDED = 128 + signal.SIGTERM
"""Exit code of a launch whose ranks were ended, by us passing a signal on."""
BASELINE = "site's settings"


@dataclass(frozen=True)
class Candidate:
    """Variables to try, on top of the site's."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    knobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A command on ranks of a site, timed under different settings; `folder` keeps what was measured."""

    site: Site
    command: tuple[str, ...]
    nodes: int
    ranks_per_node: int | None
    rounds: int
    folder: Path

    def run(self) -> int:
        """Screens every choice alone, then measures the best of them, alone and together, afresh.

        The second phase is what counts: the best of many noisy numbers looks better than it is. Leaves overlay.yaml and
        ranking.json; trials.jsonl holds every trial, and trials that are in it already are not run again.

        Returns:
            0, or 85 when the job is about to end, or was told to: run it again.

        Raises:
            UserError: the site names no knobs, the rounds are too few, or the command fails with the site's settings.
        """
        candidates = choices(self.site)
        self._check(len(candidates))
        self.folder.mkdir(parents=True, exist_ok=True)
        screened = self._phase("screen", candidates)
        confirmed = self._phase("confirm", finalists(candidates, screened)) if screened is not None else None
        if screened is None or confirmed is None:
            return SAVED
        winner = next((one for one in confirmed if one.is_faster), None)
        known = {candidate.name: candidate for candidate in finalists(candidates, screened)}
        self._write(known[winner.name] if winner else None, winner, screened, confirmed)
        print(report(screened, confirmed, winner), flush=True)
        return 0

    def _check(self, num_candidates: int) -> None:
        if not num_candidates:
            raise UserError(f"site {self.site.name}: its site.yaml has no `tuning`: name the knobs to try there")
        if not any(OUTPUT in word for word in self.command):
            raise UserError(f"the command must have {OUTPUT}, which stands for the file that it writes its time to")
        if self.rounds < least_rounds(num_candidates):
            least = least_rounds(num_candidates)
            raise UserError(f"--rounds {self.rounds}: {num_candidates} choices need at least {least} to be told apart")

    def _phase(self, phase: str, candidates: Sequence[Candidate]) -> list[Ranked] | None:
        """The ranking after all rounds, without candidates that failed; None when the job is about to end."""
        if not candidates:
            return []
        done, names = self._trials(phase), [candidate.name for candidate in candidates]
        for number in range(self.rounds):
            order = [Candidate(BASELINE), *candidates]
            random.Random(f"{phase} {number}").shuffle(order)  # the same again after an interruption
            for candidate in order:
                trials = done.setdefault(candidate.name, {})
                if number in trials or None in trials.values():
                    continue
                code, seconds = self._trial(candidate)
                if code == SAVED:
                    return None
                trials[number] = seconds
                self._record(phase, number, candidate, seconds)
            print(f"{phase}: round {number + 1} of {self.rounds}", flush=True)
        tried = {name: [done[name].get(number) for number in range(self.rounds)] for name in (BASELINE, *names)}
        return rank({name: times for name, times in tried.items() if None not in times}, BASELINE)  # type: ignore[misc]

    def _trial(self, candidate: Candidate) -> tuple[int, float | None]:
        """Exit code and seconds of one launch; None where it failed. One that was ended (Ctrl-C, TERM) says nothing."""
        output = self.folder / "trial.json"
        output.unlink(missing_ok=True)
        words = [word.replace(OUTPUT, str(output)) for word in self.command]
        site = replace(self.site, environment={**self.site.environment, **candidate.variables}, health=None)
        command = ["timeout", "--kill-after=5", str(TRIAL_TIMEOUT_S), *words]
        code = launcher.run(site, command, self.nodes, self.ranks_per_node, None)
        if code == ENDED:
            return SAVED, None
        if code == 0 and output.is_file():
            return 0, float(json.loads(output.read_text())["step_s"])
        if candidate.name == BASELINE and code != SAVED:
            raise UserError(
                f"the command fails with the site's own settings (exit code {code}): nothing to compare with"
            )
        return code, None

    @property
    def _log(self) -> Path:
        return self.folder / "trials.jsonl"

    def _trials(self, phase: str) -> dict[str, dict[int, float | None]]:
        """Seconds by candidate and round, of the trials that were run before."""
        done: dict[str, dict[int, float | None]] = {}
        for line in self._log.read_text().splitlines() if self._log.exists() else ():
            trial = json.loads(line)
            if trial["phase"] == phase:
                done.setdefault(trial["name"], {})[trial["round"]] = trial["step_s"]
        return done

    def _record(self, phase: str, number: int, candidate: Candidate, seconds: float | None) -> None:
        trial = {"phase": phase, "round": number, "name": candidate.name, "variables": candidate.variables}
        with self._log.open("a") as file:
            file.write(json.dumps({**trial, "step_s": seconds}) + "\n")

    def _write(
        self, winner: Candidate | None, measured: Ranked | None, screened: list[Ranked], confirmed: list[Ranked]
    ) -> None:
        """The winner as settings that `jobs launch --overlay` reads, and the figures."""
        where = f"{self.nodes} × {self.ranks_per_node or self.site.ranks} ranks, {self.rounds} rounds"
        settings = [
            {"name": name, "value": value, "reason": f"{measured} of the time of the {BASELINE}, {where}"}
            for name, value in (winner.variables if winner else {}).items()
        ]
        ranking = {"screen": [vars(one) for one in screened], "confirm": [vars(one) for one in confirmed]}
        (self.folder / "trial.json").unlink(missing_ok=True)
        (self.folder / "ranking.json").write_text(json.dumps(ranking, indent=1) + "\n")
        (self.folder / "overlay.yaml").write_text(yaml.safe_dump({"environment": settings}, sort_keys=False))


def choices(site: Site) -> list[Candidate]:
    """Every choice of every knob, by itself."""
    return [
        Candidate(" ".join(f"{name}={value}" for name, value in variables.items()), variables, (knob.name,))
        for knob in site.tuning
        for variables in knob.choices
    ]


def finalists(candidates: Iterable[Candidate], screened: Sequence[Ranked]) -> list[Candidate]:
    """The fastest choice, and all knobs' fastest together, of those that were measurably faster.

    Where none was, the fastest all the same: that it is measured afresh is what keeps chance out, and a gain may show
    then, as two choices need less certainty each than all of them.
    """
    known = {candidate.name: candidate for candidate in candidates}
    best: dict[tuple[str, ...], Candidate] = {}
    for one in screened:  # fastest first
        if one.is_faster:
            best.setdefault(known[one.name].knobs, known[one.name])
    single = list(best.values()) or [known[one.name] for one in screened[:1] if one.ratio < 1]
    if len(single) < 2:
        return single
    variables: dict[str, Any] = {}
    for candidate in reversed(single):  # where two knobs set one variable, the faster one's value stands
        variables |= candidate.variables
    together = Candidate(" + ".join(one.name for one in single), variables, tuple(knob for k in best for knob in k))
    return [single[0], together]


def report(screened: Sequence[Ranked], confirmed: Sequence[Ranked], winner: Ranked | None) -> str:
    """The rankings and the conclusion, for people."""
    lines = [f"time relative to the {BASELINE}: median of the rounds and its interval; {CONFIDENCE:.0%} that all hold:"]
    lines += [f"  {one}  {one.name}" for one in screened]
    if confirmed:
        lines += ["measured afresh:", *(f"  {one}  {one.name}" for one in confirmed)]
    verdict = f"faster: {winner.name}" if winner else f"nothing is measurably faster than the {BASELINE}"
    return "\n".join([*lines, verdict])
