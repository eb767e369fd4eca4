"""The table of what evaluation costs and how exact it is, for `tables.py`."""


def _row(name, found, wanted):
    return f"| {name} | {found} | {wanted} |"


def evaluation(result):
    """Table of time, memory and exactness."""
    measured = result["probes_and_knn"]
    knn, probe = measured["knn"], measured["linear_probe"]
    size = f"{measured['num_train']:,} x {measured['feature_dim']} features"
    shares = ", ".join(
        f"{100 * run['share']:.1f} % ({name}, {run['evaluations']})"
        for name, run in result["watching"].items()
    )
    answers = result["known_answers"]
    laws = ", ".join(f"{law['alpha']:.2f}" for law in answers["alpha"].values())
    ranks = ", ".join(
        f"{rank:.1f}" for rank in answers["effective_rank_of_isotropic_gaussian"].values()
    )
    lidars = list(answers["lidar"].values())
    seconds, same = result["seconds_of_features"], result["processes"]["same"]
    one, many = result["one_view_or_many"].items()
    machine, versions = result["machine"], result["versions"]
    lines = [
        "| what | here | reference |",
        "| --- | --- | --- |",
        _row(
            f"kNN of {measured['num_test']:,} among {size}",
            f"{knn['ours']['seconds']:.1f} s, {knn['ours']['peak_mib_in_all'] / 1024:.1f} GiB",
            f"{knn['points_apart']:.2f} points from brute force in float64 "
            f"({knn['reference']['seconds']:.0f} s)",
        ),
        _row(
            f"linear probe on {size}, {measured['num_classes']} classes, weight decay chosen",
            f"{probe['ours']['seconds']:.1f} s, {probe['ours']['peak_mib_in_all'] / 1024:.1f} GiB",
            f"{probe['points_apart']:.2f} points from scikit-learn, converged, at that weight "
            f"decay alone ({probe['reference']['seconds']:.0f} s)",
        ),
        _row(
            f"features of {measured['num_train'] + measured['num_test']:,} images",
            f"{seconds['extracting']:.0f} s, again {seconds['reading_again']:.2f} s",
            "",
        ),
        _row("share of a run that its evaluations take (how many)", shares, "at most 5 %"),
        _row("metrics of two processes", "the same digits" if same else "differ", "of one"),
        _row("alpha of power laws, 20,000 samples", laws, ", ".join(answers["alpha"])),
        _row(
            "effective rank of isotropic Gaussians",
            ranks,
            ", ".join(answers["effective_rank_of_isotropic_gaussian"]),
        ),
        _row(
            "LiDAR of a point, a line, 64-dimensional clusters",
            ", ".join(f"{value:.1f}" for value in lidars),
            "1, 1, 64",
        ),
        _row(
            f"linear probe, {one[1]['num_train']:,} and {one[1]['num_test']:,} images",
            f"{100 * one[1]['linear_probe']:.1f} % ({one[0]})",
            f"{100 * many[1]['linear_probe']:.1f} % ({many[0]})",
        ),
    ]
    return [
        *lines,
        "",
        f"{result['dataset']}, a ResNet-18 after {result['max_steps']} steps; one seed. Peak "
        "memory is that of the whole process. "
        f"{machine['cores']} cores of an {machine['processor']}; torch {versions['torch']}.",
    ]
