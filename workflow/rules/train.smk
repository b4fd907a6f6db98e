"""Training: the order of each run's samples, then one job per run, on as many ranks as its layout has."""

from workflow.memory import index_memory_mb, model_memory_mb, training_memory_mb


wildcard_constraints:
    run="|".join(map(re.escape, RUNS)),
    step=r"\d{8}",


# Minutes and gigabytes for a large corpus, which no accelerator should wait for. The maps lie beside the tokens, where
# runs that have the same ones share them.
rule index:
    input:
        tokens=TOKEN_FILES,
        recipe=lambda wildcards: RUNS[wildcards.run].files,
    output:
        f"{ROOT}/tokens/index/{{run}}.txt",
    log:
        f"{ROOT}/runs/{{run}}/logs/index.log",
    resources:
        mem_mb=lambda wildcards, input: index_memory_mb(
            RUNS[wildcards.run], *input.tokens[:2]
        ),
        runtime=120,
    params:
        overrides=lambda wildcards: RUNS[wildcards.run].overrides,
        world_size=lambda wildcards: RUNS[wildcards.run].world_size,
        data=f"data.path={EXPERIMENT.tokens}",
    shell:
        "neox data index {input.recipe:q} {params.overrides:q} {params.data:q} --world-size {params.world_size}"
        " 2>&1 | tee {log:q} {output:q}"


# Only the summary is declared: Snakemake removes a job's outputs before it starts and when it fails, and checkpoints
# must outlive both, for the next attempt goes on from them. The lock is for a training that outlived its controller: the
# next controller waits for it, then finds it finished. tee ignores what asks the trainer to stop, so that the trainer's
# last lines are not lost. Snakemake removes a job's log too whenever it starts: what it shows of a failure is of the last
# allocation, and train.log is of all.
rule train:
    input:
        TOKEN_FILES,
        index=rules.index.output,
        overlay=OVERLAY,
        tokenizer=EXPERIMENT.tokenizer,
        recipe=lambda wildcards: RUNS[wildcards.run].files,
    output:
        f"{ROOT}/runs/{{run}}/train_summary.json",
    log:
        f"{ROOT}/runs/{{run}}/logs/last_allocation.log",
    threads: EXPERIMENT.cores_per_node
    resources:
        nodes=lambda wildcards: RUNS[wildcards.run].nodes,
        tasks_per_node=lambda wildcards: RUNS[wildcards.run].ranks_per_node,
        cpus_per_task=lambda wildcards: RUNS[wildcards.run].cores_per_rank,
        mem_mb=lambda wildcards: training_memory_mb(RUNS[wildcards.run]),
        runtime=lambda wildcards: RUNS[wildcards.run].walltime_min,
        launches=1,  # calls `jobs launch` itself (site key has_launch_node)
    params:
        run_dir=subpath(output[0], parent=True),
        overrides=lambda wildcards: RUNS[wildcards.run].overrides,
        overlay=["--overlay", *OVERLAY] if OVERLAY else [],
        data=[
            f"data.path={EXPERIMENT.tokens}",
            f"data.tokenizer={EXPERIMENT.tokenizer}",
        ],
    shell:
        "exec 9>> {params.run_dir:q}/lock; flock --nonblock 9 || "
        "{{ echo {params.run_dir:q}': a training from before still runs here; waiting for its end'; flock 9; }};"
        # Snakemake sets the number of threads for the whole job; each rank gets its share from `jobs launch`.
        " env -u OMP_NUM_THREADS -u MKL_NUM_THREADS -u OPENBLAS_NUM_THREADS"
        " jobs launch --site {EXPERIMENT.site:q} --nodes {resources.nodes} --ranks-per-node {resources.tasks_per_node}"
        " {params.overlay:q} --run-dir {params.run_dir:q} -- neox train --run-dir {params.run_dir:q} {input.recipe:q}"
        " {params.overrides:q} {params.data:q}"
        " 2>&1 | (trap '' INT TERM USR1 USR2; exec tee -a {log:q} {params.run_dir:q}/logs/train.log)"
