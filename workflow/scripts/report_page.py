"""Draws the curves of all runs and writes one HTML page that needs no other file."""

import json
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from neox.config.derive import num_parameters
from neox.config.load import config_hash, load_config
from neox.config.schema import Config

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { font-weight: 600 } h2 { margin-top: 2.5rem } svg { max-width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left } code, pre { font: 13px/1.5 ui-monospace, monospace }
pre { background: #f6f6f6; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere } b { color: #05c }
"""
HIGHER_IS_BETTER = ("acc", "acc_norm", "exact_match", "f1")


@dataclass(frozen=True)
class Run:
    """What one run left behind."""

    name: str
    summary: dict[str, Any]
    training: list[dict[str, Any]]
    """Records of metrics.jsonl, one a step."""
    validation: list[tuple[int, float]]
    """Tokens seen and loss."""
    evaluations: dict[int, dict[str, float]]
    """Metrics by step."""
    samples: list[dict[str, Any]]
    config: Config


def write_report(name: str, prefix: str, runs: list[Run], outputs: dict[str, Path]) -> None:
    """Writes `page` and, beside it, its parts `loss`, `throughput` (SVG) and `evaluation` (HTML).

    `prefix` is of the token file; one that another program made has no manifest.
    """
    manifest = Path(f"{prefix}.manifest.json")
    tokens = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    draw_loss(runs, tokens.get("unigram_entropy"), outputs["loss"])
    draw_throughput(runs, outputs["throughput"])
    evaluations = evaluation_table(runs)
    outputs["evaluation"].write_text(document(f"{name}: evaluation", evaluations), encoding="utf-8")
    sections = [
        ("Runs", run_table(runs)),
        ("Loss", figure(outputs["loss"]) + loss_caption(tokens)),
        ("Evaluation", evaluations),
        ("Throughput", figure(outputs["throughput"])),
        ("What the models write", sample_blocks(runs)),
        ("Data", data_table(prefix, tokens)),
    ]
    body = "".join(f"<h2>{title}</h2>\n{content}\n" for title, content in sections)
    outputs["page"].write_text(document(name, body), encoding="utf-8")


def read_run(name: str, folder: str, steps: list[int]) -> Run:
    """Everything the page says about a run; only the evaluations of `steps`."""
    root = Path(folder)
    records = read_lines(root / "metrics.jsonl")
    training = [record for record in records if "loss" in record]
    tokens_at = {record["step"]: record["tokens"] for record in training}
    return Run(
        name=name,
        summary=json.loads((root / "train_summary.json").read_text(encoding="utf-8")),
        training=training,
        validation=[(tokens_at.get(r["step"], 0), r["valid_loss"]) for r in records if "valid_loss" in r],
        evaluations={
            step: json.loads((root / "eval" / f"step_{step:08d}.json").read_text(encoding="utf-8"))["metrics"]
            for step in steps
        },
        samples=read_lines(root / "samples.jsonl"),
        config=load_config([root / "config.yaml"]),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_loss(runs: list[Run], unigram_entropy: float | None, output: Path) -> None:
    """Training and validation loss of every run over tokens, and the loss of knowing frequencies alone."""
    axes = new_axes("tokens", "loss (nats per token)")
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, color="0.4", linestyle=":", label=f"unigram entropy {unigram_entropy:.2f}")
    for number, run in enumerate(runs):
        color = f"C{number % 10}"
        tokens = [record["tokens"] for record in run.training]
        losses = [record["loss"] for record in run.training]
        axes.plot(tokens, losses, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(tokens, smoothed(losses), color=color, label=run.name)
        if run.validation:
            axes.plot(
                *zip(*run.validation, strict=True), "o--", color=color, markersize=4, label=f"{run.name}, validation"
            )
    axes.legend(fontsize="small", ncols=1 + len(runs) // 8)
    save(output)


def draw_throughput(runs: list[Run], output: Path) -> None:
    """Tokens per second of every run over steps."""
    axes = new_axes("step", "tokens per second")
    for number, run in enumerate(runs):
        rates = [record["tokens_per_s"] for record in run.training]
        axes.plot([record["step"] for record in run.training], smoothed(rates), color=f"C{number % 10}", label=run.name)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", ncols=1 + len(runs) // 8)
    save(output)


def new_axes(x_label: str, y_label: str) -> Axes:
    """Axes of a figure as wide as the page."""
    plt.rcParams["svg.hashsalt"] = "neox"  # the same data gives the same file
    _, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    return axes


def save(output: Path) -> None:
    """Writes the current figure."""
    plt.savefig(output, metadata={"Date": None})
    plt.close()


def smoothed(values: list[float]) -> list[float]:
    """Exponential moving average over about 20 values, fewer of short curves, unbiased at the start."""
    keep = 1 - 1 / min(20, max(1, len(values) // 40))
    average, weight, out = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        out.append(average / weight)
    return out


def run_table(runs: list[Run]) -> str:
    """A row a run: size, tokens, final losses, time, configuration."""
    heads = [
        "run",
        "parameters",
        "steps",
        "tokens",
        "loss",
        "validation loss",
        "tokens/s",
        "MFU",
        "time",
        "configuration",
    ]
    rows = []
    for run in runs:
        rates = sorted(record["tokens_per_s"] for record in run.training)
        rows.append(
            [
                escape(run.name),
                f"{num_parameters(run.config.model):,}",
                f"{run.summary['steps']:,}",
                f"{run.summary['tokens']:,}",
                number(run.summary["final_loss"]),
                number(run.summary.get("final_valid_loss")),
                f"{rates[len(rates) // 2]:,.0f}" if rates else "–",
                f"{run.summary['mfu']:.1%}" if "mfu" in run.summary else "–",
                f"{run.summary['wall_s'] / 60:.1f} min",
                f"<code>{config_hash(run.config)[:12]}</code>",
            ]
        )
    return table(heads, rows)


def evaluation_table(runs: list[Run]) -> str:
    """A row per evaluated checkpoint, a column per metric; the best of a column is marked."""
    metrics = sorted({name for run in runs for values in run.evaluations.values() for name in values})
    metrics = [name for name in metrics if not name.endswith("_stderr")]
    cells = [(run.name, step, values) for run in runs for step, values in sorted(run.evaluations.items())]
    best = {name: best_of(name, [values[name] for _, _, values in cells if name in values]) for name in metrics}
    rows = [
        [escape(run), f"{step:,}", *(marked(values.get(name), best[name], len(cells) > 1) for name in metrics)]
        for run, step, values in cells
    ]
    return table(["run", "step", *(escape(name.replace("/", ": ")) for name in metrics)], rows)


def best_of(metric: str, values: list[float]) -> float:
    """The best value: the highest for accuracies, the lowest for everything else."""
    return max(values) if metric.rpartition("/")[2] in HIGHER_IS_BETTER else min(values)


def marked(value: float | None, best: float, mark: bool) -> str:
    """The number, emphasised when it is the best."""
    return f"<b>{number(value)}</b>" if mark and value == best else number(value)


def number(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def sample_blocks(runs: list[Run]) -> str:
    """Prompts in bold, continuations as they are."""
    blocks = []
    for run in runs:
        texts = "".join(f"<pre><b>{escape(s['prompt'])}</b>{escape(s['text'])}</pre>" for s in run.samples)
        blocks.append(f"<h3>{escape(run.name)}</h3>{texts}")
    return "\n".join(blocks)


def data_table(prefix: str, tokens: dict[str, Any]) -> str:
    """What the models were trained on."""
    rows = [["token file", escape(prefix)]]
    if tokens:
        rows += [
            ["documents", f"{tokens['documents']:,}"],
            ["tokens", f"{tokens['tokens']:,}"],
            ["bytes per token", number(tokens["bytes_per_token"])],
            ["unigram entropy, nats per token", number(tokens["unigram_entropy"])],
            ["from", escape(", ".join(sorted({source["file"] for source in tokens.get("inputs", [])})))],
            ["tokenizer", f"<code>{tokens['tokenizer_sha256'][:12]}</code>"],
        ]
    return table(["", ""], rows)


def loss_caption(tokens: dict[str, Any]) -> str:
    """Explains the figure."""
    said = "Thin: every step; bold: smoothed; dots: validation."
    if tokens:
        said += (
            " Dotted: the entropy of the tokens' frequencies, "
            f"{tokens['unigram_entropy']:.3f} nats: a model below it knows more than how common each token is."
        )
    return f"<p>{said}</p>"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def figure(path: Path) -> str:
    """The SVG itself, without what only a file of its own needs."""
    text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def document(title: str, body: str) -> str:
    """A whole HTML page."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


if __name__ == "__main__":
    job = snakemake  # type: ignore[name-defined]  # noqa: F821 - Snakemake puts it before the first line
    write_report(
        job.params.name,
        job.params.tokens,
        [read_run(**run) for run in job.params.runs],
        {name: Path(path) for name, path in job.output.items()},
    )
