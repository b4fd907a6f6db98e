"""Text to token files: corpus, tokenizer, shards, one merged token file."""

CORPUS = EXPERIMENT.settings["corpus"]
TOKEN_FILES = multiext(EXPERIMENT.tokens, ".bin", ".idx")


if "builtin" in CORPUS:

    rule corpus:
        output:
            EXPERIMENT.corpus,
        log:
            f"{ROOT}/logs/corpus.log",
        localrule: True
        shell:
            "neox data corpus --output {output:q} 2>&1 | tee {log:q}"


if "vocab_size" in EXPERIMENT.settings["tokenizer"]:

    rule tokenizer:
        input:
            EXPERIMENT.corpus,
        output:
            EXPERIMENT.tokenizer,
        log:
            f"{ROOT}/logs/tokenizer.log",
        resources:
            mem_mb=3000,
            runtime=120,
        params:
            vocab_size=EXPERIMENT.settings["tokenizer"]["vocab_size"],
            reading=EXPERIMENT.reading,
        shell:
            "neox data train-tokenizer {input:q} --vocab-size {params.vocab_size} {params.reading}"
            " --output {output:q} 2>&1 | tee {log:q}"


rule tokenize:
    input:
        corpus=EXPERIMENT.corpus,
        tokenizer=EXPERIMENT.tokenizer,
    output:
        temp(
            multiext(
                f"{ROOT}/tokens/shards/{{shard}}", ".bin", ".idx", ".manifest.json"
            )
        ),
    log:
        f"{ROOT}/logs/tokenize_{{shard}}.log",
    wildcard_constraints:
        shard=r"\d+",
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        prefix=subpath(output[0], strip_suffix=".bin"),
        num_shards=EXPERIMENT.settings["shards"],
        reading=EXPERIMENT.reading,
    shell:
        "neox data tokenize {input.corpus:q} --tokenizer {input.tokenizer:q} {params.reading}"
        " --shard {wildcards.shard}/{params.num_shards} --workers {threads} --output {params.prefix:q} 2>&1 | tee {log:q}"


rule merge:
    input:
        expand(rules.tokenize.output, shard=range(EXPERIMENT.settings["shards"])),
    output:
        multiext(f"{ROOT}/tokens/corpus", ".bin", ".idx", ".manifest.json"),
    log:
        f"{ROOT}/logs/merge.log",
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        shards=[
            f"{ROOT}/tokens/shards/{i}" for i in range(EXPERIMENT.settings["shards"])
        ],
        prefix=subpath(output[0], strip_suffix=".bin"),
    shell:
        "neox data merge {params.shards:q} --output {params.prefix:q} 2>&1 | tee {log:q}"
