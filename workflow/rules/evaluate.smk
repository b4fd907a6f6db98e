"""Evaluation of every exported checkpoint on text that training never saw."""

EVALUATE = EXPERIMENT.settings["evaluate"]


rule evaluate:
    input:
        model=rules.convert.output[0],
        data=rules.heldout.output,
        tasks=expand(
            "{folder}/{task}.yaml",
            folder=EVALUATE["task_folder"],
            task=EVALUATE["tasks"],
        ),
    output:
        f"{ROOT}/runs/{{run}}/eval/step_{{step}}.json",
    log:
        f"{ROOT}/runs/{{run}}/logs/evaluate_{{step}}.log",
    group:
        "checkpoint"
    resources:
        mem_mb=lambda wildcards: model_memory_mb(RUNS[wildcards.run]),
        runtime=60,
    params:
        folder=EVALUATE["task_folder"],
        tasks=[f"--task={task}" for task in EVALUATE["tasks"]],
        data=f"{ROOT}/heldout",
    shell:
        "neox evaluate {input.model:q} --tasks {params.folder:q} {params.tasks:q} --data {params.data:q}"
        " --output {output:q} 2>&1 | tee {log:q}"
