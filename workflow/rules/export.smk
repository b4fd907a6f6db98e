"""Checkpoints to Hugging Face models, and the text that a run's last checkpoint writes."""


rule convert:
    input:
        summary=rules.train.output[0],
        tokenizer=EXPERIMENT.tokenizer,
    output:
        directory(f"{ROOT}/runs/{{run}}/hf/step_{{step}}"),
    log:
        f"{ROOT}/runs/{{run}}/logs/convert_{{step}}.log",
    group:
        "checkpoint"
    resources:
        mem_mb=lambda wildcards: model_memory_mb(RUNS[wildcards.run]),
        runtime=60,
    params:
        checkpoint=f"{ROOT}/runs/{{run}}/checkpoints/step_{{step}}",
    shell:
        "neox convert {params.checkpoint:q} --output {output:q} --tokenizer {input.tokenizer:q} 2>&1 | tee {log:q}"


rule sample:
    input:
        summary=rules.train.output[0],
        tokenizer=EXPERIMENT.tokenizer,
    output:
        f"{ROOT}/runs/{{run}}/samples.jsonl",
    log:
        f"{ROOT}/runs/{{run}}/logs/sample.log",
    resources:
        mem_mb=lambda wildcards: model_memory_mb(RUNS[wildcards.run]),
        runtime=60,
    params:
        checkpoint=lambda wildcards: f"{ROOT}/runs/{wildcards.run}/checkpoints/"
        f"step_{RUNS[wildcards.run].config.train.steps:08d}",
        prompts=[
            f"--prompt={prompt}"
            for prompt in EXPERIMENT.settings["samples"]["prompts"]
        ],
        options=" ".join(
            f"--{key.replace('_', '-')} {EXPERIMENT.settings['samples'][key]}"
            for key in ("max_tokens", "temperature", "top_p", "seed")
        ),
    shell:
        "neox generate {params.checkpoint:q} --tokenizer {input.tokenizer:q} {params.prompts:q} {params.options}"
        " --output {output:q} 2>&1 | tee {log:q}"
