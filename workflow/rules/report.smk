"""The report page, the same figures for Snakemake's own --report, and the last words on the console."""

from workflow.summary import summary


localrules:
    report_page,


rule report_page:
    input:
        [rules.train.output[0].format(run=run) for run in RUNS],
        [rules.sample.output[0].format(run=run) for run in RUNS],
        [rules.evaluate.output[0].format(run=r.name, step=f"{s:08d}") for r in RUNS.values() for s in r.steps],
        configuration=workflow.configfiles,
        tokens=f"{TOKENS}.manifest.json",
    output:
        page=f"{ROOT}/report.html",
        loss=report(f"{ROOT}/figures/loss.svg", caption="../report/loss.rst", category="Training"),
        throughput=report(f"{ROOT}/figures/throughput.svg", caption="../report/throughput.rst", category="Training"),
        evaluation=report(f"{ROOT}/figures/evaluation.html", caption="../report/evaluation.rst", category="Evaluation"),
    log:
        f"{ROOT}/logs/report.log",
    params:
        name=EXPERIMENT.name,
        script=Path(workflow.basedir, "workflow", "scripts", "report_page.py"),
        runs=[f"{ROOT}/runs/{run}" for run in RUNS],
    shell:
        "python {params.script:q} --name {params.name:q} --tokens {input.tokens:q} --page {output.page:q}"
        " --loss {output.loss:q} --throughput {output.throughput:q} --evaluation {output.evaluation:q}"
        " {params.runs:q} 2>&1 | tee {log:q}"


onsuccess:
    print(summary(EXPERIMENT))
