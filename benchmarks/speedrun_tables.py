"""The tables of the speed run, for `tables.py`."""

ARMS = {  # rows of the second table, and how they are named
    "all_on": "everything on",
    "no_bf16": "float32 instead of bfloat16",
    "no_channels_last": "channels first",
    "no_compiled": "no torch.compile",
    "no_device_views": "views made by the CPU",
    "no_fused_optimizer": "AdamW not fused",
    "no_decoded_copy": "JPEG decoded for every batch",
}


def _seconds(value):
    if value is None:
        return "not reached"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _targets(arms):
    lines = [
        "| target | seconds of training | seconds from JPEG | of the whole schedule | at its end |",
        "| --- |" + " --- |" * 4,
    ]
    for arm in (arms[name] for name in ("short", "long") if name in arms):
        lines.append(
            f"| {100 * arm['target']:.0f} % | {_seconds(arm['seconds_to_target'])} "
            f"| {_seconds(arm['seconds_to_target_from_jpeg'])} "
            f"| {_seconds(arm['train_seconds'])} | {100 * arm['final_linear_probe']:.1f} % |"
        )
    return lines


def _speeds(arms):
    lines = ["| | images/s | views/s | of everything on | memory |", "| --- |" + " --- |" * 4]
    for name, title in ARMS.items():
        if name not in arms:
            continue
        rate, peak = arms[name]["images_per_second"], arms[name]["peak_bytes"]
        share = f"{rate / arms['all_on']['images_per_second']:.2f}" if "all_on" in arms else ""
        memory = "" if peak is None else f"{peak / 2**30:.1f} GiB"
        views = rate * arms[name]["num_views"]
        lines.append(f"| {title} | {rate:,.0f} | {views:,.0f} | {share} | {memory} |")
    return lines


def _busy(arms):
    found = arms.get("short", {}).get("device_busy")
    if found is None:
        return ""
    if found["share"] is None:
        return "How busy the device is could not be measured: torch.profiler saw no kernel. "
    return (
        f"The device is busy {100 * found['share']:.0f} % of the time: a kernel or copy runs, by "
        f"torch.profiler over {found['num_steps']} steps. "
    )


def speedrun(result):
    """Table of the seconds to the targets; then one of the tricks, each switched off once."""
    machine, arms, setting = result["machine"], result["arms"], result["setting"]
    schedule = setting["schedules"]["short"]
    where = machine["gpu"] or f"an {machine['processor']}, threads: {result['threads']}"
    versions = ", ".join(f"{p} {result['versions'][p]}" for p in ("torch", "timm"))
    speed = setting["speed"]
    counts = [str(schedule["num_evaluations"]) for schedule in setting["schedules"].values()]
    prepared = next((arms[name] for name in ("short", "long") if name in arms), None)
    apart = (
        f"Seconds from JPEG have reading ({_seconds(prepared['read_seconds'])}), decoding "
        f"({_seconds(prepared['decode_seconds'])}) and compiling "
        f"({_seconds(prepared['compile_seconds'])}) too, and no evaluations. "
        if prepared
        else ""
    )
    return [
        *_targets(arms),
        "",
        *_speeds(arms),
        "",
        f"{result['dataset']}, {result['num_train']:,} images, {schedule['num_views']} views, "
        f"batches of {schedule['batch_size']}; accuracy by the linear probe on one clean view of "
        f"{result['num_test']:,} test images, at the first of "
        f"{' or '.join(dict.fromkeys(counts))} "
        f"evaluations that reaches the target. {apart}Speeds are medians of {speed['windows']} "
        f"windows of {speed['steps']} steps, and have no compiling. {_busy(arms)}One seed; "
        f"{where}; {versions}.",
    ]
