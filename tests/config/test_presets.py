"""Presets have the published parameter counts, and every one of them resolves on ranks enough for its layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from neox.config.derive import num_parameters, resolve
from neox.config.load import load_config
from neox.config.schema import Config

PRESETS = Path(__file__).parents[2] / "neox" / "presets"
SIZES = sorted(
    path.relative_to(PRESETS).as_posix()
    for path in PRESETS.rglob("*.yaml")
    if path.name not in ("base.yaml", "long-context.yaml")
)
VOCABULARY = {"pythia": 50277, "neox-20b.yaml": 50277, "forge": 52000, "demo": 4096}
"""Of the presets that leave it to the tokenizer."""

EXACT = {
    "neox-20b.yaml": 20_554_567_680,
    "pythia/14m.yaml": 14_067_712,
    "pythia/31m.yaml": 30_494_720,
    "pythia/70m.yaml": 70_426_624,
    "pythia/160m.yaml": 162_322_944,
    "pythia/410m.yaml": 405_334_016,
    "pythia/1b.yaml": 1_011_781_632,
    "pythia/1.4b.yaml": 1_414_647_808,
    "pythia/2.8b.yaml": 2_775_208_960,
    "pythia/6.9b.yaml": 6_857_302_016,
    "pythia/12b.yaml": 11_846_072_320,
    "llama1/7b.yaml": 6_738_415_616,
    "llama1/13b.yaml": 13_015_864_320,
    "llama1/30b.yaml": 32_528_943_616,
    "llama1/65b.yaml": 65_285_660_672,
    "llama2/7b.yaml": 6_738_415_616,
    "llama2/13b.yaml": 13_015_864_320,
    "llama2/70b.yaml": 68_976_648_192,
    "llama3/1b.yaml": 1_235_814_400,
    "llama3/3b.yaml": 3_212_749_824,
    "llama3/8b.yaml": 8_030_261_248,
    "llama3/70b.yaml": 70_553_706_496,
    "llama3/405b.yaml": 405_853_388_800,
    "codellama/7b.yaml": 6_738_546_688,
    "codellama/13b.yaml": 13_016_028_160,
    "codellama/34b.yaml": 33_743_970_304,
    "codellama/70b.yaml": 68_976_910_336,
    "mistral/7b.yaml": 7_241_732_096,
    "falcon/7b.yaml": 6_921_720_704,
    "falcon/40b.yaml": 41_303_293_952,
    "polyglot-ko/1.3b.yaml": 1_331_810_304,
    "polyglot-ko/3.8b.yaml": 3_809_974_272,
    "polyglot-ko/5.8b.yaml": 5_885_059_072,
    "polyglot-ko/12.8b.yaml": 12_898_631_680,
    "stablelm/alpha-3b.yaml": 3_638_525_952,
    "stablelm/alpha-7b.yaml": 7_869_358_080,
    "stablelm/3b-4e1t.yaml": 2_795_443_200,
}
"""As the models' cards, papers or published weights have it."""

COUNTED_ON_RANKS = {"polyglot-ko/12.8b.yaml": 4, "stablelm/alpha-3b.yaml": 4, "stablelm/alpha-7b.yaml": 2}
"""Where the published count adds up tensor-parallel ranks, each with its copy of what is not sharded."""

ROUNDED = {
    "gpt3/125m.yaml": (125e6, 1e6),
    "gpt3/350m.yaml": (356e6, 1e6),
    "gpt3/760m.yaml": (760e6, 1e6),
    "gpt3/1.3b.yaml": (1_320e6, 10e6),
    "gpt3/2.7b.yaml": (2_650e6, 10e6),
    "gpt3/6.7b.yaml": (6_660e6, 10e6),
    "gpt3/13b.yaml": (12_850e6, 10e6),
    "gpt3/175b.yaml": (174_600e6, 100e6),
    "palm/8b.yaml": (8.63e9, 0.01e9),
    "palm/62b.yaml": (62.50e9, 0.01e9),
    "palm/540b.yaml": (540.35e9, 0.02e9),
    "falcon/180b.yaml": (180e9, 5e9),
    "forge/s.yaml": (1.44e9, 0.01e9),
    "forge/m.yaml": (13e9, 1e9),
    "forge/l.yaml": (22.4e9, 0.1e9),
}
"""Published with few digits: the number, and the last digit's unit. GPT-3: the paper's table D.1. PaLM 540B: 540.356,
where the paper's table 1 has 540.35."""


def preset(name: str) -> Config:
    base = PRESETS / Path(name).parent / "base.yaml"
    config = load_config([path for path in (base, PRESETS / name) if path.is_file()])
    vocabulary = config.model.vocab_size or VOCABULARY[name.partition("/")[0]]
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocabulary))


def test_every_preset_is_listed() -> None:
    demo = {name for name in SIZES if name.startswith("demo/")}
    assert set(SIZES) - demo == set(EXACT) | set(ROUNDED)


@pytest.mark.parametrize(("name", "published"), EXACT.items())
def test_exact_counts(name: str, published: int) -> None:
    model = preset(name).model
    norms_and_output_biases = (6 * model.num_layers + 2) * model.hidden_size
    copies = COUNTED_ON_RANKS.get(name, 1) - 1
    assert num_parameters(model) + copies * norms_and_output_biases == published


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_counts(name: str) -> None:
    published, unit = ROUNDED[name]
    model = preset(name).model
    if name.startswith("gpt3/"):
        model = dataclasses.replace(model, vocab_multiple=1)  # OpenAI's count has no padding
    assert abs(num_parameters(model) - published) <= unit / 2


@pytest.mark.parametrize("name", SIZES)
def test_every_preset_resolves(name: str) -> None:
    config = preset(name)
    assert resolve(config, 2 * config.parallel.tp * config.parallel.pp).parallel.dp == 2


def test_the_long_context_of_llama_3_resolves() -> None:
    files = [PRESETS / "llama3" / name for name in ("base.yaml", "8b.yaml", "long-context.yaml")]
    assert resolve(load_config(files), 1).model.rotary_scaling == "llama3"
