"""Evaluation of checkpoints, as they are, on text that training never saw."""

EVALUATE = EXPERIMENT.settings["evaluate"]


rule heldout:
    input:
        TOKEN_FILES,
        tokenizer=EXPERIMENT.tokenizer,
    output:
        expand(
            f"{ROOT}/heldout/{{name}}",
            name=[
                "perplexity.jsonl",
                "cloze.jsonl",
                "choice.jsonl",
                "arithmetic.jsonl",
                "manifest.json",
            ],
        ),
    log:
        f"{ROOT}/logs/heldout.log",
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        prefix=EXPERIMENT.tokens,
        split=EXPERIMENT.split,
        folder=f"{ROOT}/heldout",
    shell:
        "neox data heldout {params.prefix:q} --tokenizer {input.tokenizer:q} --split {params.split} --part test"
        " --output {params.folder:q} 2>&1 | tee {log:q}"


rule evaluate:
    input:
        summary=rules.train.output[0],
        tokenizer=EXPERIMENT.tokenizer,
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
        checkpoint=f"{ROOT}/runs/{{run}}/checkpoints/step_{{step}}",
        folder=EVALUATE["task_folder"],
        tasks=[f"--task={task}" for task in EVALUATE["tasks"]],
        data=f"{ROOT}/heldout",
    shell:
        "neox evaluate {params.checkpoint:q} --tokenizer {input.tokenizer:q} --tasks {params.folder:q} {params.tasks:q}"
        " --data {params.data:q} --output {output:q} 2>&1 | tee {log:q}"
