"""Corpus and tokenizer from elsewhere: the login node's work, for compute nodes often reach no network."""

TOKENIZER_NAME = EXPERIMENT.settings["tokenizer"].get("name")

if "url" in CORPUS or "name" in CORPUS:
    # Of a job that failed Snakemake deletes the outputs: what was fetched stays here, and the next job goes on from it.
    FETCHED = f"{ROOT}/fetched/{CORPUS.get('name', 'url')}"

    rule fetch:
        output:
            EXPERIMENT.corpus,
        log:
            f"{ROOT}/logs/fetch.log",
        localrule: True
        params:
            source=CORPUS.get("url") or CORPUS["name"],
            target=(
                f"{FETCHED}/{Path(EXPERIMENT.corpus[0]).name}"
                if "url" in CORPUS
                else FETCHED
            ),
            fetched=FETCHED,
            corpus=f"{ROOT}/corpus",
            checks=" ".join(
                f"--{key} {CORPUS[key]}" for key in ("sha256", "size") if key in CORPUS
            ),
        shell:
            "{{ neox data fetch {params.source:q} --output {params.target:q} {params.checks}"
            " && cp -Rlf {params.fetched:q}/. {params.corpus:q}; }} 2>&1 | tee {log:q}"


if TOKENIZER_NAME:

    rule fetch_tokenizer:
        output:
            EXPERIMENT.tokenizer,
        log:
            f"{ROOT}/logs/tokenizer.log",
        localrule: True
        params:
            name=TOKENIZER_NAME,
            folder=subpath(output[0], parent=True),
        shell:
            "neox data fetch {params.name:q} --output {params.folder:q} 2>&1 | tee {log:q}"
