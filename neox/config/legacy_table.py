"""Every key of GPT-NeoX's flat configuration files, and what becomes of it here; data only, no torch.

Names and defaults: GPT-NeoX at commit ea7aefd8, megatron/neox_arguments (320 declarations, two repeated: 318 keys).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Category = Literal["copied", "converted", "derived", "off", "refused", "elsewhere"]


@dataclass(frozen=True)
class Key:
    """One GPT-NeoX key.

    copied: `text` is our key, which takes the value unchanged. converted: `text` says what it takes part in.
    derived: GPT-NeoX computes it itself from `text`; accepted where it agrees. off: only its default (or `accepted`)
    is, because it switches the feature off. refused: only null is. elsewhere: has no effect on results here; a notice
    says what takes its place.
    """

    category: Category
    default: Any
    text: str
    accepted: tuple[Any, ...] = ()


def _block(category: Category, text: str, **defaults: Any) -> dict[str, Key]:
    return {name: Key(category, default, text) for name, default in defaults.items()}


def _null(category: Category, text: str, names: str) -> dict[str, Key]:
    return {name: Key(category, None, text) for name in names.split()}


def _off(name: str, default: Any, text: str, *accepted: Any) -> dict[str, Key]:
    return {name: Key("off", default, text, accepted)}


def _copied(**rows: tuple[str, Any]) -> dict[str, Key]:
    return {name: Key("copied", default, target) for name, (target, default) in rows.items()}


LATER = "is not in this trainer yet"
DENSE = f"{LATER}: only dense attention and MLP layers are; leave it out"
PAIRS = f"{LATER}: only next-token training is (train_impl normal); leave it out"

MODEL: dict[str, Key] = {
    **_copied(num_layers=("model.num_layers", None), hidden_size=("model.hidden_size", None)),
    **_copied(num_attention_heads=("model.num_heads", None), seq_length=("model.seq_length", None)),
    **_copied(rotary_pct=("model.rotary_pct", 1.0), rotary_emb_base=("model.rotary_base", 10000)),
    **_copied(init_method_std=("model.init_std", 0.02), gpt_j_residual=("model.parallel_residual", False)),
    **_block("converted", "model.intermediate_size", intermediate_size=None, mlp_multiple_of=1, expansion_factor=None),
    **_block("converted", "must not be below model.seq_length", max_position_embeddings=None),
    **_block("converted", "model.norm and model.norm_eps", norm="layernorm", layernorm_epsilon=1e-5),
    **_block("converted", "model.norm_eps", rms_norm_epsilon=1e-8, scalenorm_epsilon=1e-8),
    **_block("converted", "model.positions", pos_emb="learned"),
    **_block("converted", "model.t5_buckets and model.t5_max_distance", rpe_num_buckets=32, rpe_max_distance=128),
    **_block("converted", "model.position_offset with learned positions", opt_pos_emb_offset=0),
    **_block("converted", "model.tie_embeddings", no_weight_tying=False),
    **_block("converted", "all global or flash", attention_config=None),
    **_block("converted", "model.vocab_multiple", make_vocab_size_divisible_by=128),
    **_block("converted", "model.activation", activation="gelu", bias_gelu_fusion=False, onnx_safe=False),
    **_block("converted", "model.init", init_method="normal"),
    **_block("converted", "model.output_init", output_layer_init_method="scaled_normal"),
    **_block("converted", "model.bias and model.attn_bias", use_bias_in_attn_linear=True, use_bias_in_mlp=True),
    **_copied(num_kv_heads=("model.num_kv_heads", None)),
    **_block("elsewhere", "GPT-NeoX never reads it: norms keep their biases", use_bias_in_norms=True),
    **_null("converted", "model.sliding_window, less one, of window blocks everywhere", "sliding_window_width"),
    **_off(
        "use_qk_layernorm",
        False,
        "normalises the heads of one tensor-parallel rank together, so model_parallel_size changes the result: leave "
        "it out and set model.qk_norm, which normalises each head, in a file of ours",
    ),
    **_block("converted", "model.shared_norm with gpt_j_residual", gpt_j_tied=False),
    **_off("soft_prompt_tuning", None, f"{LATER}; leave it out", {"enabled": False}),
    **_off("output_layer_parallelism", "column", "row is broken in GPT-NeoX too (its issue 905): leave it out"),
    **_off("fp16_lm_cross_entropy", False, "the loss is always computed in fp32: leave it out"),
    **_off("apply_query_key_layer_scaling", False, "the softmax is computed without it: leave it out"),
    **_off("moe_num_experts", 1, DENSE, 0),
    **_off("use_mup", False, f"{LATER}; leave it out"),
    **_off("coord_check", False, f"muP {LATER}; leave it out"),
    **_off("save_base_shapes", False, f"muP {LATER}; leave it out"),
    **_block(
        "off",
        "Transformer Engine layers are not here: leave it out, PyTorch's layers compute the same",
        te_columnparallel=False,
        te_rowparallel=False,
        te_layernorm_mlp=False,
        te_mha=False,
        te_fp8_mha=False,
    ),
    **_block("elsewhere", "read only with sparse attention", sparsity_config=None),
    **_block("elsewhere", "GPT-NeoX never reads it", num_unique_layers=None, param_sharing_style="grouped"),
    **_block(
        "elsewhere",
        "speed only: which kernel computes it, the mathematics is the same",
        layernorm_fusion=False,
        rmsnorm_fusion=False,
        use_flashattn_swiglu=False,
        scaled_upper_triang_masked_softmax_fusion=False,
        scaled_masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        rope_fusion=False,
        fused_kernels_build_path=None,
        attention_softmax_in_fp32=False,
    ),
    **_block("elsewhere", "weights are initialised by name, alike on every device", use_cpu_initialization=False),
    **_block("elsewhere", "rotary frequencies are never stored in checkpoints", rotary_save_freqs_buffer=False),
    **_block("elsewhere", "read only with gmlp layers", gmlp_attn_dim=64),
    **_block(
        "elsewhere",
        "read only with mamba layers",
        mamba_selective_scan_fusion=False,
        mamba_causal_conv_fusion=False,
        mamba_inner_func_fusion=False,
        mamba_selective_fp32_params=True,
        mamba_use_bias_in_conv=True,
        mamba_use_bias_in_linears=False,
    ),
    **_null("elsewhere", "read only with rwkv layers", "dim_att head_size ffn_dim"),
    **_block("elsewhere", "read only with Transformer Engine", te_fp8_format="hybrid", te_fp8_wgrad=True),
    **_block("elsewhere", "read only with Transformer Engine", te_fp8_amax_history_len=1, te_fp8_margin=0),
    **_block("elsewhere", "read only with Transformer Engine", te_fp8_amax_compute_algo="most_recent"),
    **_block("elsewhere", "read only with moe_num_experts", moe_expert_interval=1, moe_top_k=1, moe_jitter_eps=None),
    **_block("elsewhere", "read only with moe_num_experts", moe_router_type="sinkhorn", moe_lbl_in_fp32=False),
    **_block("elsewhere", "read only with use_mup", base_shapes_file=None, mup_init_scale=1.0, mup_attn_temp=1.0),
    **_block("elsewhere", "read only with use_mup", mup_output_temp=1.0, mup_embedding_mult=1.0, mup_width_scale=2),
    **_block("elsewhere", "read only with use_mup", mup_rp_embedding_mult=1.0),
}

PARALLEL_AND_DEEPSPEED: dict[str, Key] = {
    **_copied(model_parallel_size=("parallel.tp", 1), train_batch_size=("train.global_batch_size", None)),
    **_copied(train_micro_batch_size_per_gpu=("train.micro_batch_size", None)),
    **_copied(gradient_accumulation_steps=("train.grad_accum", None), gradient_clipping=("optim.grad_clip", 1.0)),
    **_block("converted", "parallel.pp (0 is 1)", pipe_parallel_size=0),
    **_block("converted", "parallel.partition", pipe_partition_method="type:transformer|mlp"),
    **_block("converted", "train.precision", precision=None, fp16=None, bf16=None),
    **_block("converted", "parallel.zero_stage, parallel.offload", zero_optimization=None),
    **_block("converted", "parallel.recompute: full", checkpoint_activations=False),
    **_block("converted", "optim", optimizer=None),
    **_null("derived", "train_micro_batch_size_per_gpu", "batch_size"),
    **_null("derived", "gradient_clipping", "clip_grad"),
    **_null("derived", "optimizer.params.lr", "lr"),
    **_null("derived", "optimizer.type", "optimizer_type"),
    **_null("derived", "zero_optimization.stage", "zero_stage"),
    **_copied(sequence_parallel=("parallel.sequence_parallel", False)),
    **_block("converted", "optim.name: adamw8bit", use_bnb_optimizer=False),
    **_off("deepspeed", True, "DeepSpeed is the only engine"),
    **_off("prescale_gradients", False, "gradients are averaged in fp32: leave it out"),
    **_off("gradient_predivide_factor", 1.0, "gradients are averaged in fp32: leave it out"),
    **_off("sparse_gradients", False, f"{LATER}; leave it out"),
    **_off("communication_data_type", None, "gradients are reduced in fp32: leave it out", "fp32"),
    **_off("data_types", None, "gradients are summed in fp32: leave it out", {}, {"grad_accum_dtype": "fp32"}),
    **_off("scheduler", None, "DeepSpeed's schedulers are not used: lr_decay_style, warmup, lr_decay_iters"),
    **_block("converted", "train.seq_warmup", curriculum_learning=None),
    **_off("curriculum_seqlen", 0, "GPT-NeoX's counter of the length at hand, from curriculum_learning: leave it out"),
    **_off("checkpoint", None, "DeepSpeed's checkpoint options do not apply to ours: leave it out", {}),
    **_null("converted", "notices of DeepSpeed's reports, which are not written", "deepspeed_extra_args"),
    **_off("autotuning", None, f"{LATER}; `neox plan` sizes a layout", {"enabled": False}),
    **_null("refused", "`neox plan` sizes a layout: leave it out", "autotuning_run"),
    **{
        name: Key("off", None, f"{LATER}; leave it out", ({}, {"enabled": False}))
        for name in ("amp", "sparse_attention", "data_efficiency", "elasticity", "compression_training")
    },
    **_block("elsewhere", "gradients are always reduced in fp32", fp32_allreduce=False),
    **_null(
        "elsewhere",
        "speed only: DeepSpeed's buckets are set here",
        "zero_reduce_scatter zero_contiguous_gradients zero_reduce_bucket_size zero_allgather_bucket_size",
    ),
    **_block("elsewhere", "log.interval sets the progress lines", steps_per_print=10, wall_clock_breakdown=False),
    **_block("elsewhere", "DeepSpeed's own reports are not written", dump_state=False, flops_profiler=None),
    **_null("elsewhere", "DeepSpeed's own reports are not written: metrics.jsonl", "comms_logger csv_monitor wandb"),
    **_null("elsewhere", "the run directory: tensorboard/, see log.tensorboard", "tensorboard tensorboard_dir"),
    **_block(
        "elsewhere",
        "memory only: `parallel.recompute` is all there is to choose here, a block at a time",
        activation_checkpointing=None,
        checkpoint_num_layers=1,
        deepspeed_activation_checkpointing=True,
        contiguous_checkpointing=False,
        checkpoint_in_cpu=False,
        synchronize_each_layer=False,
        profile_backward=False,
        partition_activations=False,
    ),
    **_block(
        "elsewhere",
        "the launcher decides: `jobs launch --site`, site_configs/",
        hostfile=None,
        include=None,
        exclude=None,
        num_nodes=-1,
        num_gpus=None,
        master_port=29500,
        master_addr=None,
        launcher="pdsh",
        force_multi=False,
        no_ssh_check=False,
        comment=None,
        account=None,
        deepspeed_mpi=False,
        deepspeed_slurm=False,
        distributed_backend="nccl",
        local_rank=None,
        rank=None,
        world_size=None,
        global_num_gpus=None,
        lazy_mpu_init=False,
        user_script=None,
        deepscale=False,
        deepscale_config=None,
        is_pipe_parallel=False,
    ),
}
