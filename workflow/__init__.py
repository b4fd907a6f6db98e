"""The Snakemake workflow: which runs there are, and the stages that each passes; loads no torch."""
