"""The rest of GPT-NeoX's keys: data, training, checkpoints, logging and generation; `TABLE` is all of them."""

from __future__ import annotations

from neox.config.legacy_table import (
    LATER,
    MODEL,
    PAIRS,
    PARALLEL_AND_DEEPSPEED,
    Key,
    _block,
    _copied,
    _null,
    _off,
)

TRAINING: dict[str, Key] = {
    **_copied(
        data_path=("data.path", None), train_iters=("train.steps", None), weight_decay=("optim.weight_decay", 0.1)
    ),
    **_copied(min_lr=("optim.min_lr", 0.0), warmup=("optim.warmup", 0.01)),
    **_copied(eval_interval=("train.valid_interval", 1000), eval_iters=("train.valid_batches", 100)),
    **_copied(extra_save_iters=("checkpoint.steps", None), keep_last_n_checkpoints=("checkpoint.keep_last", None)),
    **_copied(log_interval=("log.interval", 100)),
    **_block("converted", "optim.schedule", lr_decay_style="linear"),
    **_block("converted", "checkpoint.interval or checkpoint.steps", checkpoint_factor=None, checkpoint_scale="linear"),
    **_block("converted", "data.split", split="969, 30, 1"),
    **_block("converted", "train.seed and data.seed", seed=1234),
    **_block("converted", "data.tokenizer", vocab_file=None, tokenizer_type="GPT2BPETokenizer"),
    **_null("refused", f"{LATER}: give train_iters", "train_epochs"),
    **_null("converted", "optim.decay_steps", "lr_decay_iters lr_decay_fraction"),
    **_null("refused", "give `neox train --stop-after MINUTES`, or train_iters", "exit_interval"),
    **_null("refused", "computed here from the tokenizer and make_vocab_size_divisible_by", "padded_vocab_size"),
    **_null(
        "elsewhere",
        "training counts the entries of vocab_file; `neox data convert-tokenizer` makes a tokenizer.json of both",
        "merge_file",
    ),
    **_copied(s3_path=("checkpoint.mirror", None), s3_chunk_size=("checkpoint.mirror_part_bytes", 104_857_600)),
    **_null("converted", "data.train_paths, data.valid_paths", "train_data_paths valid_data_paths"),
    **_null("converted", "data.test_paths", "test_data_paths"),
    **_null("converted", "data.train_weights, data.valid_weights", "train_data_weights valid_data_weights"),
    **_null("converted", "data.test_weights", "test_data_weights"),
    **_copied(weight_by_num_documents=("data.weight_by_documents", False)),
    **_copied(weighted_sampler_alpha=("data.weight_alpha", 1.0)),
    **_null(
        "converted", "data.train_label_paths, data.valid_label_paths", "train_label_data_paths valid_label_data_paths"
    ),
    **_null("converted", "data.test_label_paths", "test_label_data_paths"),
    **_copied(pack_impl=("data.packing", "packed"), allow_chopped=("data.allow_chopped", True)),
    **_null("refused", PAIRS, "train_reward_data_paths test_reward_data_paths valid_reward_data_paths"),
    **_null("refused", PAIRS, "pos_train_data_paths neg_train_data_paths pos_train_label_data_paths"),
    **_null("refused", PAIRS, "neg_train_label_data_paths pos_valid_data_paths neg_valid_data_paths"),
    **_null("refused", PAIRS, "pos_valid_label_data_paths neg_valid_label_data_paths pos_test_data_paths"),
    **_null("refused", PAIRS, "neg_test_data_paths pos_test_label_data_paths neg_test_label_data_paths"),
    **_copied(attention_dropout=("model.attention_dropout", 0.0), hidden_dropout=("model.hidden_dropout", 0.0)),
    **_off("data_impl", "infer", "only mmap token files (.bin and .idx) are read", "mmap"),
    **_off("dataset_impl", "gpt2", PAIRS),
    **_off("train_impl", "normal", PAIRS),
    **_copied(eod_mask_loss=("data.mask_eod", False)),
    **_block("converted", "checkpoint.init_from, from load", finetune=False),
    **_block("off", "checkpoints are always whole: leave it out", no_save_optim=False, no_save_rng=False),
    **_block("off", "a run always resumes whole: leave it out", no_load_optim=False, no_load_rng=False),
    **_off("checkpoint_validation_with_forward_pass", False, "every file is hashed and checked instead: leave it out"),
    **_off("char_level_ppl", False, f"{LATER}: `neox evaluate` reports bits per byte"),
    **_block("elsewhere", "a resumed run always continues its own schedule", override_lr_scheduler=False),
    **_block("elsewhere", "a resumed run always continues its own schedule", use_checkpoint_lr_scheduler=False),
    **_block("elsewhere", "GPT-NeoX never reads it", short_seq_prob=0.1),
    **_block("elsewhere", "loading: token files are memory-mapped, rank 0 builds the order", use_shared_fs=True),
    **_block("elsewhere", "loading: token files are memory-mapped, rank 0 builds the order", mmap_warmup=False),
    **_block("elsewhere", "loading: token files are memory-mapped, rank 0 builds the order", num_workers=2),
    **_null("elsewhere", "the run directory: `neox train --run-dir`, resumed from there", "save load"),
    **_null("elsewhere", "set by GPT-NeoX itself while it runs", "iteration do_train do_valid do_test config_files"),
    **_null("elsewhere", "set by GPT-NeoX itself while it runs", "git_hash comet_experiment"),
    **_block("elsewhere", "a run saves on a signal and the job is resubmitted", adlr_autoresume=False),
    **_block("elsewhere", "a run saves on a signal and the job is resubmitted", adlr_autoresume_interval=1000),
    **_block("elsewhere", "GPT-NeoX reads it only inside fp16", hysteresis=2, dynamic_loss_scale=None, loss_scale=None),
    **_block("elsewhere", "GPT-NeoX reads it only inside fp16", loss_scale_window=1000.0, min_scale=1.0),
    **_block("elsewhere", "read only with train_impl dpo", dpo_fp32=True, dpo_reference_free=False, dpo_beta=0.1),
    **_block("elsewhere", "read only with train_impl kto", kto_fp32=True, kto_desirable_weight=1.0, kto_beta=0.1),
    **_block("elsewhere", "read only with train_impl kto", kto_undesirable_weight=1.0),
    **_block("elsewhere", "read only with train_impl rm", z_loss=0.0),
    **_block("elsewhere", "read only with train_impl reinforce", fp32_reinforce=True, kl_impl="mse", kl_div_beta=0.1),
    **_block("elsewhere", "read only with train_impl reinforce", reinforce_leave_one_out=False),
}

LOGGING_AND_GENERATION: dict[str, Key] = {
    **_block("converted", "log.wandb: online", use_wandb=None),
    **_off("use_comet", None, f"{LATER}: W&B, TensorBoard and metrics.jsonl are", False),
    **_copied(wandb_project=("log.wandb_project", "neox"), wandb_host=("log.wandb_host", "https://api.wandb.ai")),
    **_copied(wandb_group=("log.wandb_group", None), wandb_run_name=("log.wandb_name", None)),
    **_copied(wandb_team=("log.wandb_team", None)),
    **_block("elsewhere", "the first rank draws for all: their losses are equal", wandb_init_all_ranks=False),
    **_null("elsewhere", "read only with use_comet", "comet_workspace comet_project comet_experiment_name"),
    **_null("elsewhere", "read only with use_comet", "comet_tags comet_others"),
    **_null("elsewhere", "the run directory: logs/", "log_dir"),
    **_copied(peak_theoretical_tflops=("log.rank_tflops", None)),
    **_block("converted", "log.gradient_norms_interval", log_grad_norm=False, log_grad_pct_zeros=False),
    **_block("converted", "log.state_norms_interval", log_param_norm=False, log_optimizer_states=False),
    **_block("converted", "log.noise_scale_steps", log_gradient_noise_scale=False, gradient_noise_scale_n_batches=5),
    **_block(
        "elsewhere",
        "memory only: the sum is dealt to the replicas and kept where they have the gradients",
        gradient_noise_scale_cpu_offload=False,
    ),
    **_block("converted", "log.profile_steps", profile=False, profile_step_start=10, profile_step_stop=12),
    **_block("converted", "log.memory_snapshot", memory_profiling=False),
    **_block("elsewhere", "the run directory: profile/", memory_profiling_path=None),
    **_off("serve_model_weights", False, f"{LATER}; leave it out"),
    **_block("elsewhere", "read only with serve_model_weights", weight_server_port=6000),
    **_block("elsewhere", "read only with dataset_impl online", online_dataserver_ips="localhost"),
    **_block("elsewhere", "read only with dataset_impl online", online_dataserver_ports=10000),
    **_block("converted", "a notice of `neox generate` with its flags", text_gen_type=None, temperature=0.0, top_p=0.0),
    **_block("converted", "a notice of `neox generate` with its flags", top_k=0, maximum_tokens=64, prompt_end="\n"),
    **_block("converted", "a notice of `neox generate` with its flags", sample_input_file=None, num_samples=1),
    **_block("converted", "a notice of `neox generate` with its flags", sample_output_file="samples.txt"),
    **_off("return_logits", False, "`neox generate` gives texts and their tokens, no logits: leave it out"),
    **_block("elsewhere", "generation has a cache of keys and values, which changes no token", recompute=False),
    **_null("elsewhere", "read only with text_gen_type precompute", "precompute_model_name"),
    **_block(
        "elsewhere", "evaluation is a command of its own: `neox evaluate`", eval_results_prefix="", eval_tasks=None
    ),
}

TABLE: dict[str, Key] = {**MODEL, **PARALLEL_AND_DEEPSPEED, **TRAINING, **LOGGING_AND_GENERATION}

KEYS: dict[str, Key] = {
    **TABLE,
    **_copied(reset_attention_mask=("data.mask_documents", False), reset_position_ids=("data.reset_positions", False)),
}
"""TABLE, and the keys of early GPT-NeoX and Megatron-LM that it dropped without a successor."""

TYPES: dict[str, type | None] = {
    **dict.fromkeys(["intermediate_size", "max_position_embeddings", "sliding_window_width"], int),
    **dict.fromkeys(["lr_decay_iters", "batch_size", "zero_stage"], int),
    **dict.fromkeys(["expansion_factor", "checkpoint_factor", "lr_decay_fraction", "clip_grad", "lr"], float),
    **dict.fromkeys(["precision", "optimizer_type", "vocab_file", "text_gen_type", "sample_input_file"], str),
    **dict.fromkeys(["fp16", "bf16", "zero_optimization", "optimizer", "curriculum_learning"], dict),
    "deepspeed_extra_args": dict,
    **{f"{part}_{of}": list for part in ("train", "valid", "test") for of in ("data_paths", "label_data_paths")},
    **{f"{part}_data_weights": list for part in ("train", "valid", "test")},
    **{"attention_config": list, "use_wandb": bool, "split": None},
}
"""Of the converted and derived keys whose default does not tell it; None: its converter looks."""
