"""Draws what tuning the communication has found: the settings' ranking, and the rate of each message by its size."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter


def draw(ranking: Path, curves: tuple[Path, Path], output: Path) -> None:
    """Both halves of the figure; `curves` are those of the site's settings and of the overlay."""
    phases = json.loads(ranking.read_text(encoding="utf-8"))
    screened, confirmed = phases["screen"], phases["confirm"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 2 + 0.3 * (len(screened) + len(confirmed))))
    draw_ranking(left, screened, confirmed)
    for path, line in zip(curves, ("--", "-"), strict=True):
        draw_rates(right, json.loads(path.read_text(encoding="utf-8"))["messages"], line)
    right.legend()
    figure.tight_layout()
    figure.savefig(output)
    plt.close(figure)


def draw_ranking(axes: Axes, screened: list[dict[str, Any]], confirmed: list[dict[str, Any]]) -> None:
    """One row per setting: median ratio and its interval."""
    rows = [*screened, *confirmed]
    for place, row in enumerate(rows):
        axes.plot((row["low"], row["high"]), (place, place), color="C0")
        axes.plot(row["ratio"], place, "o", color="C2" if row["high"] < 1 else "C0")
    axes.set_yticks(range(len(rows)), [row["name"].replace(" ", "\n") for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.axhline(len(screened) - 0.5, color="0.7", linewidth=0.8)
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("time relative to the site's settings")


def draw_rates(axes: Axes, messages: list[dict[str, Any]], line: str) -> None:
    """Bytes per second over bytes, a curve for each operation and group."""
    kinds = list(dict.fromkeys((message["operation"], message["axis"]) for message in messages))
    for number, kind in enumerate(kinds):
        points = [m for m in messages if (m["operation"], m["axis"]) == kind]
        sizes = [point["num_bytes"] for point in points]
        rates = [point["num_bytes"] / point["seconds"] for point in points]
        label = f"{kind[0]} ({kind[1]})" if line == "-" else None
        axes.loglog(sizes, rates, line, color=f"C{number}", marker=".", label=label)
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.yaxis.set_major_formatter(EngFormatter("B/s"))
    axes.set_xlabel("size of the message")


if __name__ == "__main__":
    job = snakemake  # type: ignore[name-defined]  # noqa: F821 - Snakemake puts it before the first line
    draw(Path(job.input.ranking), (Path(job.input.curves[0]), Path(job.input.curves[1])), Path(job.output[0]))
