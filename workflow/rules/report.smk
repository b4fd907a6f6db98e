"""The report page, the same figures for Snakemake's own --report, and the last words on the console."""

from workflow.summary import summary


rule report_page:
    input:
        [rules.train.output[0].format(run=run) for run in RUNS],
        [rules.sample.output[0].format(run=run) for run in RUNS],
        [
            rules.convert.output[0].format(run=r.name, step=f"{s:08d}")
            for r in RUNS.values()
            for s in r.exported
        ],
        [
            rules.evaluate.output[0].format(run=r.name, step=f"{s:08d}")
            for r in RUNS.values()
            for s in r.steps
        ],
        configuration=workflow.configfiles,
        tokens=TOKEN_FILES,
    output:
        page=f"{ROOT}/report.html",
        loss=report(
            f"{ROOT}/figures/loss.svg",
            caption="../report/loss.rst",
            category="Training",
        ),
        throughput=report(
            f"{ROOT}/figures/throughput.svg",
            caption="../report/throughput.rst",
            category="Training",
        ),
        evaluation=report(
            f"{ROOT}/figures/evaluation.html",
            caption="../report/evaluation.rst",
            category="Evaluation",
        ),
    localrule: True
    params:
        name=EXPERIMENT.name,
        tokens=EXPERIMENT.tokens,
        runs=[
            {
                "name": run.name,
                "folder": f"{ROOT}/runs/{run.name}",
                "steps": list(run.steps),
            }
            for run in RUNS.values()
        ],
    script:
        "../scripts/report_page.py"


onsuccess:
    print(summary(EXPERIMENT))
