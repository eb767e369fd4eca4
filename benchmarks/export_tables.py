"""The table of the families that each loader loads, for `tables.py`."""

LOADERS = ("timm", "transformers")


def _summary(versions, run):
    families = run["families"]
    tests = sum(name.startswith("test_") for name in families)
    loaded = (
        f"{sum(found[loader] == 'ok' for found in families.values())} of {run['n']}"
        for loader in LOADERS
    )
    what = f"{len(families) - tests} families, {tests} test architectures"
    return f"| {versions}, torch {run['versions']['torch']} | {what} | {' | '.join(loaded)} |"


def _failing(result):
    """Return the loaders that fail in any run, by family."""
    failing = {}
    for run in result["runs"].values():
        for name, found in run["families"].items():
            if loaders := [loader for loader in LOADERS if found[loader] != "ok"]:
                failing.setdefault(name, []).append((run["versions"]["timm"], loaders))
    return failing


def export_matrix(result):
    """Table of families, loaders and versions; then those that are not loaded."""
    lines = ["| versions | tried | timm loads | transformers loads |", "| --- |" + " --- |" * 3]
    newest_first = sorted(
        result["runs"].items(),
        key=lambda item: [int(part) for part in item[1]["versions"]["timm"].split(".")],
        reverse=True,
    )
    lines += [_summary(versions, run) for versions, run in newest_first]
    lines += ["", "Not loaded:", "", "| family | by | with timm | why |", "| --- |" + " --- |" * 3]
    for name, cases in sorted(_failing(result).items()):
        known = result["known_failures"].get(name)
        why = known["reason"] if known else "not known"
        before = f"before {known['before']}" if known else ", ".join(v for v, _ in cases)
        loaders = sorted({loader for _, names in cases for loader in names})
        lines.append(f"| `{name}` | {', '.join(loaders)} | {before} | {why} |")
    machine = newest_first[0][1]["machine"]
    seconds = " and ".join(str(run["processor_seconds"]) for _, run in newest_first)
    return [
        *lines,
        "",
        "One small architecture of each family (module) of timm, its weights and running "
        "statistics unlike any initial ones, loaded in a process that cannot import `ssl_views`: "
        "state equal to the last bit, features allclose (absolute 1e-5, relative 1e-3), a picture "
        f"preprocessed to the last bit as in training. {seconds} seconds of processor time of an "
        f"{machine['processor']}.",
    ]
