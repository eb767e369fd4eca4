"""The table of faults, for `tables.py`."""


def faults(result):
    """Table of what was broken, and what survived."""
    lines = ["| fault | tried | survived | lost |", "| --- | --- | --- | --- |"]
    for name, counts in result["faults"].items():
        lines.append(f"| {name} | {counts['tried']} | {counts['survived']} | {counts['lost']} |")
    files, damaged, save = result["files"], result["damaged"], result["save"]
    wrong = damaged["results"].get("wrong", 0) + len(damaged["slow"])
    for name, tried, lost in (
        ("image files of every kind, as specified", files["tried"], files["lost"]),
        ("damaged image files: pixels or a bad image, in 0.5 s", damaged["count"], wrong),
    ):
        lines.append(f"| {name} | {tried:,} | {tried - lost:,} | {lost} |")
    most = max(counts["most_steps_lost"] for counts in result["faults"].values())
    extra = save["extra_seconds"] * 300 / save["megabytes"]
    decode = " and ".join(f"{c['ratio']:.2f} ({name})" for name, c in result["decode"].items())
    machine, versions = result["machine"], result["versions"]
    return [
        *lines,
        "",
        "A run has survived if the same command resumed it, and indices, pixels, weights, buffers, "
        "optimizer and scheduler are those of a run in peace, to the bit. At most "
        f"{most} steps were taken again, with a checkpoint every 3. Damaged files took at most "
        f"{damaged['slowest'][0]:.2f} s and {damaged['peak_megabytes']:.0f} MB. A save takes "
        f"{extra:.2f} s more than the stock Trainer's per 300 MB; reading and decoding takes "
        f"{decode} of the time of plain `datasets`. {machine['cores']} cores of an "
        f"{machine['processor']}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}.",
    ]
