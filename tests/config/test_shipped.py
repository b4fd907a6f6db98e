"""Files of the shapes that GPT-NeoX, Pythia and AWS ship: each resolves, or is refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neox.config.derive import num_parameters, resolve
from neox.config.errors import UserError
from neox.config.load import load_config
from neox.config.schema import Config

# The layout, comments, hyphens and trailing comma of Pythia's files, with its 70M shape.
PYTHIA = """{
  # parallelism settings
  "pipe-parallel-size": 1, "model-parallel-size": 1,
  "num-layers": 6, "hidden-size": 512, "num-attention-heads": 8, "seq-length": 2048,
  "max-position-embeddings": 2048, "pos-emb": "rotary", "rotary-pct": 0.25,
  "no-weight-tying": true, "gpt-j-residual": true, "output-layer-parallelism": "column",
  "attention-config": [[["flash"], 6]],
  "scaled-upper-triang-masked-softmax-fusion": true, "bias-gelu-fusion": true,
  "init_method": "small_init", "output_layer_init_method": "wang_init",
  "optimizer": {"type": "Adam", "params": {"lr": 0.001, "betas": [0.9, 0.95], "eps": 1.0e-8}},
  "min_lr": 0.0001,
  "zero_optimization": {"stage": 1, "allgather_bucket_size": 500000000, "cpu_offload": false},
  # batch size (trained on 32 gpus)
  "train_micro_batch_size_per_gpu": 32, "gas": 1, "data-impl": "mmap", "num_workers": 1,
  "checkpoint-activations": true, "partition-activations": true,
  "gradient_clipping": 1.0, "weight-decay": 0.1, "hidden-dropout": 0, "attention-dropout": 0,
  "fp16": {"fp16": true, "enabled": true, "loss_scale": 0, "loss_scale_window": 1000,
           "initial_scale_power": 12, "hysteresis": 2, "min_loss_scale": 1},
  "train-iters": 143000, "lr-decay-iters": 143000, "distributed-backend": "nccl",
  "lr-decay-style": "cosine", "warmup": 0.01, "checkpoint-factor": 1000,
  "extra-save-iters": [0,1,2,4,8,16,32,64,128,256,512],
  "eval-interval": 100000, "eval-iters": 10, "log-interval": 10, "steps_per_print": 10,
  "train-data-paths": ["/data/pile_text_document"], "valid-data-paths": ["/data/pile_text_document"],
  "test-data-paths": ["/data/pile_text_document"],
  "tokenizer-type": "HFTokenizer", "vocab-file": "20B_tokenizer.json",
  "launcher": "slurm", "deepspeed_slurm": true,
}
"""


def load(folder: Path, *texts: str, overrides: tuple[str, ...] = (), world_size: int = 32) -> Config:
    files = [folder / f"{number}.yml" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    return resolve(load_config(files, [*overrides, "model.vocab_size=50277"]), world_size)


def changed(old: str, new: str) -> str:
    assert old in PYTHIA
    return PYTHIA.replace(old, new)


def test_pythia_as_shipped_is_our_preset(tmp_path: Path) -> None:
    """But for what the file says of its cluster and its data, and how often it validates."""
    config = load(tmp_path, PYTHIA, overrides=("compat=neox_v1",))
    presets = Path(__file__).parents[2] / "neox" / "presets" / "pythia"
    same = ["data.train_paths=[/data/pile_text_document]", "data.valid_paths=[/data/pile_text_document]"]
    same += ["data.test_paths=[/data/pile_text_document]", "data.tokenizer=20B_tokenizer.json"]
    same += ["train.valid_interval=100000", "train.micro_batch_size=32", "model.vocab_size=50277"]
    preset = resolve(
        load_config(
            [presets / "base.yaml", presets / "70m.yaml"],
            [*same, "parallel.partition=type:transformer|mlp", "parallel.recompute=full"],
        ),
        32,
    )
    assert config == preset
    assert num_parameters(config.model) == 70_426_624 and config.train.global_batch_size == 1024
    assert len({*config.checkpoint.steps, *range(1000, 143001, 1000)}) == 154


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # pythia-12b.yml: a comma is missing
        (changed('"num-layers": 6,', '"num-layers": 6'), "0.yml:4: not valid YAML"),
        # pythia-12b-deduped.yml: layers and heads exchanged, the list of layers not
        (changed('"num-layers": 6', '"num-layers": 8'), "attention_config = .*: names 6 layers, num_layers = 8"),
        # utils/dummy_config.yml, autotuning_configs/*.json
        (
            changed('"checkpoint-factor"', '"save-interval"'),
            "unknown GPT-NeoX key 'save-interval'; nearest: checkpoint_factor",
        ),
        # llemma
        (changed('"warmup"', '"warmup_iters"'), "unknown GPT-NeoX key 'warmup_iters'; nearest: warmup"),
        (changed('"min_lr"', '"decay_lr_to"'), "unknown GPT-NeoX key 'decay_lr_to'; nearest: min_lr"),
        # the gpt-neox copies of other architectures
        (changed('[["flash"], 6]', '[["rwkv"], 6]'), "'rwkv' layers are not in this trainer yet"),
        (changed('"test-data-paths"', '"test-data-weights"'), "test_data_paths"),
    ],
)
def test_broken_and_later_files_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, text)


def test_model_and_data_in_two_files(tmp_path: Path) -> None:
    """`deepy.py train.py -d configs 70M.yml local_setup.yml`, with GPT-2's tokenizer."""
    start, end = PYTHIA.index('  "train-data-paths"'), PYTHIA.index('  "launcher"')
    data = {"data_path": "data/enwik8/enwik8_text_document", "vocab_file": "data/gpt2-vocab.json"}
    data |= {"merge_file": "data/gpt2-merges.txt", "tensorboard_dir": "tensorboard", "split": "949,50,1"}
    config = load(tmp_path, PYTHIA[:start] + PYTHIA[end:], json.dumps(data))
    assert (config.data.path, config.data.tokenizer) == ("data/enwik8/enwik8_text_document", "data/gpt2-vocab.json")
    assert config.data.split == (949.0, 50.0, 1.0) and config.compat == "neox_v2"


def test_train_iters_changed_alone_is_a_cosine_that_rises_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rises again after it, until train\.steps = 150000"):
        load(tmp_path, changed('"train-iters": 143000', '"train-iters": 150000'))
