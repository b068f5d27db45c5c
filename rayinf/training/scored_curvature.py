"""The curvature that scores rest on, as arguments of the verbs that solve with one."""

from __future__ import annotations

from typing import Any

from rayinf.data.scores import Scores


def curvature_of(scores: Scores) -> dict[str, Any] | None:
    """The arguments of the curvature that scores rest on, and its factors where these lie on disk.

    Args:
        scores: of a run of this package; of others, or of several models, there is no answer: None.
    """
    meta = scores.metadata
    if "curvature" not in meta or "members" in meta or meta.get("inverse", "damped") is None:
        return None
    how = {k: meta[k] for k in ("curvature", "fisher", "seed") if meta.get(k) is not None}
    if meta.get("inverse") != "unrolled":
        how |= {"inverse": "damped", "damping": meta.get("damping")}
    elif meta.get("training_time_from") == "training_time":
        how["training_time"] = meta["training_time"]
    else:
        how["inverse"] = "auto" if "held_out_curvature" in meta else "unrolled"
    return how if scores.path is None else {**how, "factors": scores.path}
