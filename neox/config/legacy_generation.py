"""GPT-NeoX's text generation keys as the flags of `neox generate`."""

from __future__ import annotations

import shlex

from neox.config.legacy_convert import Converted, Flat
from neox.config.legacy_table_run import KEYS

FLAGS = {"maximum_tokens": "--max-tokens", "top_k": "--top-k", "top_p": "--top-p"}
"""Keys whose value the flag takes, unless it is 0."""
KINDS = (None, "unconditional", "input-file", "interactive")
READ = ("text_gen_type", "temperature", *FLAGS, "prompt_end", "num_samples", "sample_input_file", "sample_output_file")


def generation(flat: Flat) -> Converted:
    """A notice of the command that generates what the keys ask for; training reads none of them."""
    given = [name for name in READ if flat.get(name) != KEYS[name].default]
    kind = flat.get("text_gen_type")
    if kind not in KINDS:
        reason = "allowed are unconditional, input-file, interactive; there is no training yet to precompute for"
        raise flat.refusal("text_gen_type", reason)
    if not given:
        return {}
    # Without a temperature GPT-NeoX is greedy, but where it filters it draws all the same.
    draws = flat.get("top_k") or flat.get("top_p")
    words = ["--temperature", flat.get("temperature") or (1.0 if draws else 0.0)]
    for name, flag in FLAGS.items():
        words += [flag, flat.get(name)] if flat.get(name) else []
    if kind == "interactive":
        words.append("--interactive")
    elif kind == "unconditional":
        words += ["--num-samples", flat.get("num_samples")]
    elif kind == "input-file":
        words += ["--input", flat.get("sample_input_file") or "FILE"]
    if kind in ("interactive", "input-file") and flat.get("prompt_end") != "\n":
        words += ["--prompt-end", flat.get("prompt_end")]
    if kind in ("unconditional", "input-file"):
        words += ["--output", flat.get("sample_output_file")]
    command = shlex.join(["neox", "generate", "CHECKPOINT_DIR", *map(str, words)])
    flat.notices.append(f"{', '.join(given)}: generation is a command of its own: {command}")
    return {}
