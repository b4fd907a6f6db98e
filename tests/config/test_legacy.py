"""GPT-NeoX's flat files: every key has a fate, files load as they are, and what cannot be done is refused by name."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest

from neox.__main__ import main, parser
from neox.config import legacy
from neox.config.errors import UserError
from neox.config.legacy_generation import READ
from neox.config.legacy_table import Category
from neox.config.legacy_table_run import KEYS, TABLE
from neox.config.legacy_unread import READERS
from neox.config.load import key_names, load_config
from neox.config.schema import Config

NAMES = (Path(__file__).parent / "data" / "neox_keys.txt").read_text().split()
SMALL: dict[str, Any] = {
    "num-layers": 4,
    "hidden-size": 64,
    "num-attention-heads": 4,
    "seq-length": 32,
    "pos-emb": "rotary",
    "train-iters": 100,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
}
CURRICULUM = {
    "enabled": True,
    "curriculum_type": "seqlen",
    "min_difficulty": 8,
    "max_difficulty": 32,
    "schedule_type": "fixed_root",
    "schedule_config": {"total_curriculum_step": 50, "difficulty_step": 8, "root_degree": 2},
}
DISCRETE = {
    "schedule_type": "fixed_discrete",
    "schedule_config": {"difficulty": [8, 16, 32], "max_step": [5, 10]},
}
BLEND = {"train_data_paths": ["a", "b"], "valid_data_paths": ["c"], "test_data_paths": ["d"]}


def load(folder: Path, **changes: Any) -> Config:
    """SMALL with changes (underscores for hyphens; ... removes a key), through a JSON file."""
    flat = {key.replace("-", "_"): value for key, value in SMALL.items()} | changes
    path = folder / "flat.json"
    path.write_text(json.dumps({key: value for key, value in flat.items() if value is not ...}))
    return load_config([path])


def notices(**changes: Any) -> str:
    return "\n".join(legacy.translate(legacy.collect([(Path("a.yml"), {**SMALL, **changes})]))[1])


def changed(changes: dict[str, Any]) -> str:
    """The notices of SMALL with other values for keys that it has."""
    hyphens = {key.replace("-", "_"): key for key in SMALL}
    return notices(**{hyphens.get(key, key): value for key, value in changes.items()})


def test_the_table_has_exactly_gpt_neox_keys_each_with_category_and_reason() -> None:
    assert len(NAMES) == 318  # 320 declarations: autotuning and force_multi are declared twice
    assert sorted(TABLE) == sorted(NAMES)
    for name, key in TABLE.items():
        assert key.category in get_args(Category) and key.text, name
        if key.category == "copied":
            assert key.text in key_names(), name


def test_defaults_of_gpt_neox_apply_where_a_key_is_not_set(tmp_path: Path) -> None:
    config = load(tmp_path)
    model, optim = config.model, config.optim
    assert (model.num_layers, model.hidden_size, model.num_heads, model.seq_length) == (4, 64, 4, 32)
    assert (model.activation, model.tie_embeddings, model.parallel_residual) == ("gelu", True, False)
    assert (model.rotary_pct, model.init, model.output_init) == (1.0, "normal", "scaled_normal")
    assert (optim.lr, optim.min_lr, optim.betas, optim.schedule) == (1e-3, 0.0, (0.9, 0.999), "linear")
    assert (config.train.precision, config.parallel.pp, config.checkpoint.interval) == ("fp32", 1, 100)
    assert config.data.split == (969.0, 30.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        ({"no_weight_tying": True}, "model.tie_embeddings", False),
        ({"bias_gelu_fusion": True}, "model.activation", "gelu_tanh"),
        ({"model_parallel_size": 4}, "model.vocab_multiple", 512),
        (
            {"activation": "swiglu", "intermediate_size": 32768, "mlp_multiple_of": 256},
            "model.intermediate_size",
            11008,
        ),
        ({"norm": "rmsnorm"}, "model.norm_eps", 1e-8),
        ({"norm": "scalenorm", "scalenorm_epsilon": 1e-6}, "model.norm_eps", 1e-6),
        ({"norm": "non_parametric_layernorm", "layernorm_epsilon": 1e-6}, "model.norm_eps", 1e-6),
        ({"activation": "swish"}, "model.activation", "silu"),
        ({"activation": "geglu", "intermediate_size": 96}, "model.activation", "geglu"),
        ({"activation": "geglu", "intermediate_size": 96}, "model.intermediate_size", 32),
        ({"pos_emb": ...}, "model.positions", "learned"),
        ({"pos_emb": "learned", "opt_pos_emb_offset": 2}, "model.position_offset", 2),
        ({"opt_pos_emb_offset": 2}, "model.position_offset", 0),
        ({"pos_emb": "rpe", "rpe_num_buckets": 16}, "model.positions", "t5"),
        ({"pos_emb": "rpe", "rpe_num_buckets": 16}, "model.t5_buckets", 16),
        ({"pos_emb": "rpe", "rpe_max_distance": 64}, "model.t5_max_distance", 64),
        ({"pos_emb": "alibi"}, "model.positions", "alibi"),
        ({"num_kv_heads": 2}, "model.num_kv_heads", 2),
        ({"sliding_window_width": 7}, "model.sliding_window", 8),
        ({"sliding_window_width": 7}, "model.layer_pattern", ("window",)),
        ({"use_bias_in_attn_linear": False}, "model.attn_bias", False),
        ({"use_bias_in_attn_linear": False}, "model.bias", True),
        ({"use_bias_in_attn_linear": False, "use_bias_in_mlp": False}, "model.bias", False),
        ({"gpt_j_residual": True, "gpt_j_tied": True}, "model.shared_norm", True),
        ({"gpt_j_tied": True}, "model.shared_norm", False),
        ({"hidden_dropout": 0.1}, "model.hidden_dropout", 0.1),
        ({"attention_dropout": 0.1}, "model.attention_dropout", 0.1),
        ({"pipe_parallel_size": 2}, "parallel.pp", 2),
        ({"pipe_parallel_size": 2}, "parallel.partition", "type:transformer|mlp"),
        ({"pipe_partition_method": "Type:Embedding|NormPipe"}, "parallel.partition", "type:embedding|normpipe"),
        ({"sequence_parallel": True, "model_parallel_size": 2}, "parallel.sequence_parallel", True),
        ({"checkpoint_activations": True}, "parallel.recompute", "full"),
        ({"fp16": {"enabled": True, "type": "bfloat16", "auto_cast": True}}, "train.precision", "bf16"),
        ({"fp16": {"enabled": True, "loss_scale_window": 500}}, "train.precision", "fp16"),
        ({"fp16": {"enabled": True, "loss_scale_window": 500}}, "train.fp16_scale_window", 500),
        ({"fp16": {"enabled": True}}, "train.fp16_initial_scale_power", 16),
        ({"fp16": {"enabled": True, "hysteresis": 1, "min_loss_scale": 4}}, "train.fp16_hysteresis", 1),
        ({"precision": "bfloat16"}, "train.precision", "bf16"),
        ({"split": "949,50,1"}, "data.split", (949.0, 50.0, 1.0)),
        ({"checkpoint_factor": 10}, "checkpoint.interval", 10),
        ({"checkpoint_factor": 3, "checkpoint_scale": "log"}, "checkpoint.steps", (1, 3, 9, 27, 81)),
        ({"extra_save_iters": [0, 7]}, "checkpoint.steps", (0, 7)),
        ({"tokenizer_type": "HFTokenizer", "vocab_file": "t.json"}, "data.tokenizer", "t.json"),
        ({"vocab_file": "vocab.json", "merge_file": "m.txt"}, "data.tokenizer", "vocab.json"),
        ({"tokenizer_type": "CharLevelTokenizer"}, "model.vocab_size", 512),
        ({"seed": 7, "finetune": True}, "data.seed", 7),
        ({"finetune": True, "load": "start"}, "checkpoint.init_from", "start"),
        ({"load": "start"}, "checkpoint.init_from", None),
        ({"s3_path": "s3://bucket/neox"}, "checkpoint.mirror", "s3://bucket/neox"),
        ({"s3_chunk_size": 10_000_000}, "checkpoint.mirror_part_bytes", 10_000_000),
        ({"peak_theoretical_tflops": 312}, "log.rank_tflops", 312.0),
        ({"use_wandb": True}, "log.wandb", "online"),
        ({"log_param_norm": True, "log_interval": 7}, "log.state_norms_interval", 7),
        ({"log_interval": 7}, "log.state_norms_interval", 0),
        ({"log_grad_norm": True, "log_interval": 7}, "log.gradient_norms_interval", 7),
        ({"log_grad_pct_zeros": True, "log_interval": 7}, "log.gradient_norms_interval", 7),
        ({"log_interval": 7}, "log.gradient_norms_interval", 0),
        ({"log_gradient_noise_scale": True}, "log.noise_scale_steps", 5),
        (
            {"log_gradient_noise_scale": True, "gradient_noise_scale_n_batches": 10, "log_interval": 7},
            "log.noise_scale_steps",
            10,
        ),
        ({"gradient_noise_scale_n_batches": 10}, "log.noise_scale_steps", 0),
        ({"wandb_group": "g"}, "log.wandb_group", "g"),
        ({"wandb_group": "g"}, "log.wandb", "off"),
        ({"profile": True, "profile_step_stop": 20}, "log.profile_steps", (11, 20)),
        ({"memory_profiling": True}, "log.memory_snapshot", True),
        ({"profile_step_start": 3}, "log.profile_steps", None),
        ({"init_method": "xavier_uniform"}, "model.init", "xavier_uniform"),
        ({"eod_mask_loss": True}, "data.mask_eod", True),
        ({"use_bnb_optimizer": True}, "optim.name", "adamw8bit"),
        ({"optimizer": {"type": "cpu_adam", "params": {"lr": 1}}}, "optim.name", "adamw"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 1, "adam_w_mode": False}}}, "optim.name", "adam"),
        ({"optimizer": {"type": "Lion", "params": {"lr": 1}}}, "optim.betas", (0.9, 0.99)),
        ({"optimizer": {"type": "SGD", "params": {"lr": 1, "momentum": 0.9}}}, "optim.momentum", 0.9),
        ({"curriculum_learning": CURRICULUM}, "train.seq_warmup_lengths", (8, 32)),
        ({"curriculum_learning": CURRICULUM}, "train.seq_warmup_steps", (50,)),
        ({"curriculum_learning": CURRICULUM}, "train.seq_warmup", "root"),
        ({"curriculum_learning": CURRICULUM | DISCRETE}, "train.seq_warmup_lengths", (8, 16, 32)),
        ({"lr_decay_fraction": 0.255}, "optim.decay_steps", 25),
        ({"lr_decay_fraction": 0.5, "lr_decay_iters": 90}, "optim.decay_steps", 90),
        ({"lr_decay_style": "exponential"}, "optim.schedule", "exponential"),
        ({**BLEND, "train_data_weights": [1, 2]}, "data.train_paths", ("a", "b")),
        ({**BLEND, "train_data_weights": [1, 2]}, "data.train_weights", (1.0, 2.0)),
        (BLEND, "data.valid_paths", ("c",)),
        ({**BLEND, "train_label_data_paths": ["x", "y"]}, "data.train_label_paths", ("x", "y")),
        ({"pack_impl": "unpacked", "allow_chopped": False}, "data.packing", "unpacked"),
        ({"pack_impl": "unpacked", "allow_chopped": False}, "data.allow_chopped", False),
        (BLEND, "data.test_weights", ()),
        ({**BLEND, "weight_by_num_documents": True, "weighted_sampler_alpha": 0.3}, "data.weight_alpha", 0.3),
        ({**BLEND, "weight_by_num_documents": True}, "data.weight_by_documents", True),
        ({"gas": 4}, "train.grad_accum", 4),
        ({"gradient_accumulation_steps": 4, "gas": 4}, "train.grad_accum", 4),
        ({"attention_config": [[["flash", "global"], 2]]}, "model.num_layers", 4),
        ({"attention_config": ["flash", "global", "global", "flash"]}, "model.layer_pattern", ("global",)),
        ({"attention_config": [[["local"], 3], [["flash", "global"], "all"]]}, "model.layer_pattern", ("global",)),
        ({"reset_attention_mask": True}, "data.mask_documents", True),
        ({"reset-position-ids": True}, "data.reset_positions", True),
        ({"zero_optimization": {"stage": 1, "overlap_comm": True, "cpu_offload": False}}, "parallel.zero_stage", 1),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 5}}, "parallel.zero_stage", 2),
        ({"zero_optimization": {"stage": 3}, "zero_stage": 3}, "parallel.zero_stage", 3),
        ({"zero_optimization": {"stage": 3}}, "parallel.offload", "none"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "parallel.offload", "optimizer"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "parallel.offload", "optimizer"),
        ({"zero_optimization": {"offload_optimizer": {"device": "none"}}}, "parallel.offload", "none"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "parallel.offload", "parameters"),
        ({"batch_size": 2}, "train.micro_batch_size", 2),
    ],
)
def test_values_become_ours(tmp_path: Path, changes: dict[str, Any], key: str, expected: Any) -> None:
    section, _, name = key.partition(".")
    assert getattr(getattr(load(tmp_path, **changes), section), name) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pos_emb": "xpos"}, ["pos_emb = 'xpos'", "rotary, sinusoidal, alibi"]),
        ({"norm": "te_rmsnorm"}, ["norm = 'te_rmsnorm'", "scalenorm"]),
        ({"activation": "tanh"}, ["activation = 'tanh'", "bilinear, geglu"]),
        ({"use_qk_layernorm": True}, ["use_qk_layernorm = True", "model.qk_norm"]),
        ({"train_iters": ...}, ["train_iters is required"]),
        ({"init_method": "kaiming"}, ["init_method = 'kaiming'", "scaled_orthogonal"]),
        ({"use_bnb_optimizer": True, "pos_emb": "learned"}, ["use_bnb_optimizer = True", "optim.name=adamw8bit"]),
        (
            {"use_bnb_optimizer": True, "optimizer": {"type": "Lion", "params": {"lr": 1}}},
            ["use_bnb_optimizer = True", "type is Lion"],
        ),
        ({"curriculum_learning": {**CURRICULUM, "min_difficulty": None}}, ["curriculum_learning", "min_difficulty"]),
        (
            {"curriculum_learning": {**CURRICULUM, "schedule_type": "custom"}},
            ["schedule_type = 'custom'", "fixed_root"],
        ),
        ({"lr_decay_fraction": 0}, ["lr_decay_fraction = 0", "above 0"]),
        ({"train_data_paths": ["a"], "valid_data_paths": ["b"]}, ["test_data_paths", "train_data_paths"]),
        ({**BLEND, "data_path": "d"}, ["data_path = 'd'", "train_data_paths"]),
        ({**BLEND, "valid_data_weights": [1, 2]}, ["valid_data_weights", "a list of 1"]),
        ({**BLEND, "train_label_data_paths": ["x"]}, ["train_label_data_paths", "a list of 2"]),
        ({**BLEND, "train_data_paths": "a"}, ["train_data_paths = 'a'", "list"]),
        ({"train_epochs": 2}, ["train_epochs = 2", "train_iters"]),
        ({"moe_num_experts": 8}, ["moe_num_experts = 8", "dense"]),
        ({"tokenizer_type": "SPMTokenizer"}, ["tokenizer_type = 'SPMTokenizer'", "neox data convert-tokenizer"]),
        ({"attention_config": [[["mamba"], "all"]]}, ["attention_config", "'mamba'"]),
        ({"attention_config": ["global", "local", "global", "local"]}, ["attention_config", "'local'"]),
        ({"attention_config": [[["global", "local"], 2]]}, ["attention_config", "'local'"]),
        ({"attention_config": [[["global"] * 3, "all"]]}, ["3 types do not divide num_layers = 4"]),
        ({"attention_config": ["global"] * 5}, ["5 layers", "num_layers = 4"]),
        ({"attention_config": [[["global"], 3]]}, ["3 layers", "num_layers = 4"]),
        ({"batch_size": 3}, ["batch_size = 3", "train_micro_batch_size_per_gpu = 2"]),
        ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage = 4", "0, 1, 2, 3"]),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, ["offload_param.device = 'nvme'", "cpu, none"]),
        ({"zero_optimization": {"offload_param": {"device": "cpu", "x": 1}}}, ["zero_optimization.offload_param.x ="]),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, ["zero_optimization.offload_optimizer.ratio"]),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, ["zero_hpz_partition_size = 8"]),
        ({"optimizer": {"type": "OneBitAdam", "params": {"lr": 1}}}, ["optimizer.type = 'OneBitAdam'", "ZeRO"]),
        ({"optimizer": {"type": "sm3", "params": {"lr": 1}}}, ["optimizer.type = 'sm3'", "adamw is"]),
        ({"optimizer": {"type": "Lamb", "params": {"lr": 1}}}, ["optimizer.type = 'Lamb'", "Lion and SGD"]),
        ({"optimizer": {"type": "Lion", "params": {"lr": 1, "eps": 1}}}, ["optimizer.params.eps = 1", "lr, betas are"]),
        ({"pipe_partition_method": "profile"}, ["pipe_partition_method = 'profile'", "type:REGEX"]),
        ({"pipe_partition_method": "type:(mlp"}, ["pipe_partition_method = 'type:(mlp'", "regular expression"]),
        ({"precision": "fp16", "bf16": {"enabled": True}}, ["precision = 'fp16'", "bf16 and fp16"]),
        ({"fp16": {"enabled": True, "loss_scale": 128}}, ["fp16.loss_scale = 128"]),
        ({"deepspeed_extra_args": {"comms_logger": {}, "bf16": {"enabled": True}}}, ["deepspeed_extra_args.bf16 = {"]),
        (
            {"deepspeed_extra_args": {"use_node_local_storage": True}},
            ["use_node_local_storage = True: options are not"],
        ),
        ({"fp16": {"enabled": True, "type": "bfloat16", "x": 1}}, ["fp16.x = 1"]),
        ({"activation": "swiglu", "intermediate_size": 14336}, ["4779", "4778"]),
        ({"lr_decay_style": "polynomial"}, ["lr_decay_style", "cosine"]),
        ({"save_interval": 5}, ["unknown GPT-NeoX key 'save_interval'", "checkpoint_factor"]),
        ({"gradient_accumulation_steps": 4, "gas": 2}, ["'gradient_accumulation_steps' is already set"]),
        ({"amp": {"enabled": True}}, ["amp = "]),
        ({"train": {"steps": 3}}, ["'train' a section of ours"]),
        ({"train_iters": "many"}, ["train_iters = 'many'", "expected int"]),
        ({"no_weight_tying": "yes"}, ["no_weight_tying = 'yes'", "expected bool"]),
        ({"split": "1,2,3,4"}, ["split", "three"]),
        ({"expansion_factor": 0}, ["expansion_factor = 0", "no width"]),
        ({"attention_config": [[["global"], 10**9]]}, ["attention_config", "up to num_layers"]),
        ({"bf16": {"enabled": True, "loss_scale": 1}}, ["bf16.loss_scale = 1"]),
        ({"optimizer": {"type": "Adam", "params": [1e-3]}}, ["optimizer.params = [0.001]", "block of keys"]),
        ({"optimizer": {"lr": 1e-3, "params": {"lr": 1e-3}}}, ["optimizer.lr = 0.001"]),
        ({"curriculum_learning": {**CURRICULUM, "steps": 5}}, ["curriculum_learning.steps = 5"]),
        ({"curriculum_learning": {**CURRICULUM, "schedule_config": [1]}}, ["schedule_config = [1]", "block of keys"]),
        (
            {"curriculum_learning": {**CURRICULUM, "schedule_config": {"max_steps": [1]}}},
            ["curriculum_learning.schedule_config.max_steps = [1]: is not"],
        ),
        ({"text_gen_type": "precompute"}, ["text_gen_type = 'precompute': allowed are unconditional"]),
        ({"return_logits": True}, ["return_logits = True: `neox generate` gives"]),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, **changes)
    message = str(error.value)
    assert "flat.json" in message and "\n" not in message
    assert all(part in message for part in expected), message


def test_a_value_of_a_wrong_type_is_refused_by_name_for_every_key_that_is_read() -> None:
    for name, key in KEYS.items():
        if key.category in ("copied", "converted", "derived"):
            with pytest.raises(UserError) as error:
                changed({name: [{"a": 1}]})
            assert "a.yml: GPT-NeoX key" in str(error.value) and name in str(error.value)


def test_switched_off_features_are_accepted(tmp_path: Path) -> None:
    off = {"amp": {"enabled": False}, "curriculum_learning": {"enabled": False, "x": 1}, "use_wandb": False}
    assert load(tmp_path, **off, data_impl="mmap", gpt_j_tied=False, hidden_dropout=0, train_epochs=None) == load(
        tmp_path
    )


def test_what_has_no_place_here_is_noticed_and_never_silent() -> None:
    for name, key in TABLE.items():
        if key.category == "elsewhere":
            assert f"{name}: {key.text}" in notices(**{name: "something"}), name
    shown = notices(deepspeed_extra_args={"comms_logger": {"enabled": True}})
    assert "deepspeed_extra_args.comms_logger: DeepSpeed's own reports are not written" in shown


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"text_gen_type": "unconditional"}, "--temperature 0.0 --max-tokens 64 --num-samples 1 --output samples.txt"),
        (
            {"text_gen_type": "unconditional", "temperature": 0.7, "top_k": 5, "num_samples": 3, "maximum_tokens": 9},
            "--temperature 0.7 --max-tokens 9 --top-k 5 --num-samples 3 --output samples.txt",
        ),
        (
            {"text_gen_type": "input-file", "sample_input_file": "a b", "sample_output_file": "c", "prompt_end": "##"},
            "--temperature 0.0 --max-tokens 64 --input 'a b' --prompt-end '##' --output c",
        ),
        ({"text_gen_type": "interactive", "top_p": 0.9}, "--temperature 1.0 --max-tokens 64 --top-p 0.9 --interactive"),
        ({"temperature": 0.5}, "--temperature 0.5 --max-tokens 64"),
    ],
)
def test_generation_is_noticed_as_its_command(changes: dict[str, Any], flags: str) -> None:
    line = f"{', '.join(name for name in READ if name in changes)}: generation is a command of its own: "
    assert f"{line}neox generate CHECKPOINT_DIR {flags}" in notices(**changes).splitlines()
    assert parser().parse_args(["generate", "run", *shlex.split(flags)]).temperature == float(flags.split()[1])


def test_keys_that_nothing_reads_are_noticed() -> None:
    for name in READERS:
        shape: dict[str, Any] = {"norm": "non_parametric_layernorm", "pos_emb": "none"}
        shape |= {"norm": "rmsnorm"} if name == "layernorm_epsilon" else {}
        value = not KEYS[name].default if isinstance(KEYS[name].default, bool) else 0.25
        value = 7 if isinstance(KEYS[name].default, int) and not isinstance(value, bool) else value
        assert f"{name}: read only with" in changed(shape | {name: value}), name
    shown = notices(**BLEND, split="1,1,1", finetune=True, profile_step_stop=20)
    for line in ("split: read only with data_path", "finetune: read only with load", "profile_step_stop: read only"):
        assert line in shown
    scaler = {"loss_scale": 0, "hysteresis": 2}
    assert "fp16.loss_scale, fp16.hysteresis: bf16" in notices(fp16={"enabled": True, "type": "bfloat16", **scaler})
    for block in ({"enabled": True, **scaler}, {"enabled": True, "type": "bfloat16"}):
        assert "without a loss scale" not in notices(fp16=block)
    read = notices(split="1,1,1", pack_impl="unpacked", allow_chopped=False)
    assert "read only with data_path" not in read and "allow_chopped" not in read


def test_several_files_are_one_and_ours_come_after(tmp_path: Path) -> None:
    first, second, own = tmp_path / "a.yml", tmp_path / "b.yml", tmp_path / "own.yaml"
    first.write_text(json.dumps(SMALL))
    second.write_text('{"data_path": "tokens/all", "log_interval": 5,}')
    own.write_text("train: {steps: 7}\n")
    config = load_config([first, second, own], ["optim.lr=5e-4"])
    assert (config.data.path, config.log.interval, config.train.steps, config.optim.lr) == ("tokens/all", 5, 7, 5e-4)
    with pytest.raises(UserError, match=r"a.yml: a GPT-NeoX file must come before"):
        load_config([own, first])
    second.write_text("num_layers: 5\n")
    with pytest.raises(UserError, match=r"b.yml: GPT-NeoX key 'num_layers' is already set in .*a.yml"):
        load_config([first, second])


def test_config_show_prints_our_form_and_notices_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shown.yml"
    path.write_text(json.dumps({**SMALL, "launcher": "slurm"}))
    assert main(["config", "show", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "compat: neox_v2" in out and "give compat=neox_v1" in err
    assert "num_heads: 4" in out and "launcher" not in out
    assert "neox: notice: shown.yml: launcher: the launcher decides" in err
    (tmp_path / "again.yaml").write_text(out)
    assert load_config([tmp_path / "again.yaml"]) == load_config([path])
