"""Tuning: the site's communication knobs swept over one run's messages; every training uses what was faster."""

from workflow.memory import training_memory_mb

TUNE = EXPERIMENT.settings.get("tune")
OVERLAY = [f"{ROOT}/tuning/overlay.yaml"] if TUNE else []

if TUNE:
    TUNED = RUNS[TUNE["run"]]

    # One allocation for all of it: on other nodes, or at another hour, the network is another. Trials are not declared:
    # Snakemake would remove them before it tries again, and a second attempt goes on from them.
    rule tune:
        input:
            tokenizer=EXPERIMENT.tokenizer,
            recipe=TUNED.files,
        output:
            overlay=OVERLAY,
            ranking=f"{ROOT}/tuning/ranking.json",
            curves=expand(
                f"{ROOT}/tuning/curve_{{settings}}.json", settings=["site", "overlay"]
            ),
        log:
            f"{ROOT}/tuning/tune.log",
        threads: EXPERIMENT.cores_per_node
        resources:
            nodes=TUNED.nodes,
            tasks_per_node=TUNED.ranks_per_node,
            cpus_per_task=TUNED.cores_per_rank,
            mem_mb=training_memory_mb(TUNED),
            runtime=120,
            launches=1,
        params:
            folder=subpath(output.ranking, parent=True),
            size=[
                *("--site", EXPERIMENT.site, "--nodes", TUNED.nodes),
                *("--ranks-per-node", TUNED.ranks_per_node),
            ],
            bench=[
                *("neox", "bench", "--backend", TUNE["backend"]),
                *(*TUNED.files, *TUNED.overrides),
                f"data.tokenizer={EXPERIMENT.tokenizer}",
            ],
            rounds=TUNE["rounds"],
            place=lambda wildcards: "{output}",  # what `jobs tune` replaces in the command
        shell:
            "( env jobs tune {params.size:q} --rounds {params.rounds} --output {params.folder:q}"
            " -- {params.bench:q} --output {params.place:q} &&"
            " env jobs launch {params.size:q} -- {params.bench:q} --curve --output {output.curves[0]:q} &&"
            " env jobs launch {params.size:q} --overlay {output.overlay:q}"
            " -- {params.bench:q} --curve --output {output.curves[1]:q} ) 2>&1 | tee {log:q}"

    rule tuning_figure:
        input:
            ranking=rules.tune.output.ranking,
            curves=rules.tune.output.curves,
        output:
            report(
                f"{ROOT}/figures/tuning.svg",
                caption="../report/tuning.rst",
                category="Communication",
            ),
        localrule: True
        script:
            "../scripts/tuning_figure.py"
