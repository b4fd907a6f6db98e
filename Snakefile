"""From raw text to evaluated Hugging Face checkpoints: `snakemake --profile site_configs/local`."""

import os
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

# `neox` and `jobs` are those of the environment that snakemake runs in, whether it is activated or not.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
sys.path.insert(0, workflow.basedir)

from workflow.experiment import open_experiment

if not workflow.overwrite_configfiles:

    configfile: "workflow/config/demo.yaml"


EXPERIMENT = open_experiment(config)
ROOT = EXPERIMENT.root
RUNS = EXPERIMENT.runs


include: "workflow/rules/data.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        [*rules.report_page.input, *rules.report_page.output],  # inputs too: what was deleted is made again
        f"{ROOT}/figures/tuning.svg" if "tune" in EXPERIMENT.settings else [],
