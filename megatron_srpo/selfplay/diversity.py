"""How varied the questions of a self-play are, within and across iterations: the numbers of its report.

The same questions give the same numbers. What takes more than linear time is computed on samples that are
spread evenly over an iteration's questions.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.report.self_play_data import DIVERSITY_VERSION
from megatron_srpo.selfplay.asked import Asked, by_iteration
from megatron_srpo.selfplay.bleu import bleu_similarity
from megatron_srpo.selfplay.clusters import cluster_labels
from megatron_srpo.selfplay.recurrence import Nearest, nearest, overlap, seen_before
from megatron_srpo.selfplay.spread import Vectors, cosine_distance, evenly, mean_pair_cosine, spread
from megatron_srpo.selfplay.surface import Pairs, pairs, surface_against_skill
from megatron_srpo.selfplay.types import Remembered

Row = dict[str, Any]
_PAIRS_AT_ONCE = 32  # pairs whose BLEU comes out of one matrix


@dataclass(frozen=True)
class Limits:
    """Thresholds and sample sizes; they stand in diversity.json.

    Attributes:
        near: cosine from which on a question recurs.
        cluster_distance: as in the Challenger's reward.
        clustered: questions of an iteration that are clustered.
        together: questions of all iterations that are clustered together.
        compared: questions of an iteration whose pairs are compared by words and by skill.
        drawn: pairs kept for drawing, over all iterations.
    """

    near: float = 0.9
    cluster_distance: float = 0.5
    clustered: int = 2000
    together: int = 4000
    compared: int = 256
    drawn: int = 1500


@dataclass
class Diversity:
    """What was found: numbers per iteration, and the nearest old question of each new one.

    Attributes:
        rows: per iteration.
        recurrence: ``[t][u]``: share of iteration t's questions with a near-equal one in iteration u <= t.
        overlap: ``[t][u]``: what iterations t and u <= t have in common as shares of clusters.
        drawn: sampled pairs: iteration, BLEU, cosine.
        near: rows of nearest.jsonl.
    """

    limits: Limits
    rows: dict[int, Row] = field(default_factory=dict)
    recurrence: dict[int, list[float]] = field(default_factory=dict)
    overlap: dict[int, list[float | None]] = field(default_factory=dict)
    drawn: list[tuple[int, float, float]] = field(default_factory=list)
    near: list[Row] = field(default_factory=list)

    def curve(self, name: str) -> dict[int, float]:
        """Return one number by iteration, where it exists."""
        return {number: row[name] for number, row in self.rows.items() if row.get(name) is not None}

    def tree(self) -> Row:
        """Return what diversity.json holds of this."""
        return {
            "version": DIVERSITY_VERSION,
            "limits": dataclasses.asdict(self.limits),
            "iterations": [{"iteration": number, **row} for number, row in sorted(self.rows.items())],
            "recurrence": {"iterations": [*self.recurrence], "shares": [*self.recurrence.values()]},
            "overlap": {"iterations": [*self.overlap], "shares": [*self.overlap.values()]},
            "pairs": self.drawn,
        }


def measure_diversity(
    entries: Sequence[Remembered], vectors_ND: Vectors | None, limits: Limits = Limits()
) -> Diversity:
    """Measure valid questions of all iterations.

    Args:
        entries: of any number of iterations.
        vectors_ND: a unit row per entry; None where skills were not measured: then only words are compared.
    """
    found, asked = Diversity(limits), by_iteration(entries, vectors_ND)
    for one in asked:
        found.rows[one.iteration] = {"questions": len(one.entries)}
        _add(found.rows[one.iteration], _spread_numbers(one, limits))
        _compare_words(found, one, len(asked))
    if vectors_ND is not None:
        _add_recurrence(found, asked)
        _add_seen(found, asked)
    return found


def _add(row: Row, numbers: Mapping[str, float | int | None]) -> None:
    row.update({name: value for name, value in numbers.items() if value is not None})


def _spread_numbers(asked: Asked, limits: Limits) -> Row:
    if asked.vectors_ND is None:
        return {}
    chosen = evenly(len(asked.entries), limits.clustered)
    labels_N = _skill_labels([asked], [chosen], limits.cluster_distance)
    spread_out = spread(labels_N)
    numbers: Row = {"skill/sampled": len(chosen), "skill/cosine_mean": mean_pair_cosine(asked.vectors_ND)}
    if spread_out is not None:
        numbers |= {
            "skill/clusters": spread_out.clusters,
            "skill/effective_clusters": spread_out.effective,
            "skill/largest_share": spread_out.largest_share,
        }
    return numbers


def _skill_labels(
    asked: Sequence[Asked], chosen: Sequence[NDArray[np.intp]], distance: float
) -> NDArray[np.int64]:
    """Cluster the chosen questions of some iterations together."""
    texts = [one.entries[i].question for one, places in zip(asked, chosen, strict=True) for i in places]
    vectors = [_vectors(one)[places] for one, places in zip(asked, chosen, strict=True)]
    return cluster_labels(cosine_distance(np.concatenate(vectors)), distance, texts)


def _vectors(asked: Asked) -> Vectors:
    if asked.vectors_ND is None:
        raise ValueError(f"iteration {asked.iteration} has no skill vectors")
    return asked.vectors_ND


def _compare_words(found: Diversity, asked: Asked, iterations: int) -> None:
    """Compare sampled questions pair by pair: by their words, and by skill where it is known."""
    limits, row = found.limits, found.rows[asked.iteration]
    chosen = evenly(len(asked.entries), limits.compared)
    texts = [asked.entries[i].question for i in chosen]
    bleu_NN = bleu_similarity(texts)
    words = spread(cluster_labels(1.0 - bleu_NN, limits.cluster_distance, texts))
    row["surface/sampled"] = len(texts)
    if words is not None:
        row["surface/clusters"] = words.clusters
    bleu_P = pairs(bleu_NN, bleu_NN).bleu_P
    if len(bleu_P):
        row["surface/bleu_mean"] = float(bleu_P.mean())
    if asked.vectors_ND is not None:
        distance_NN = cosine_distance(asked.vectors_ND[chosen])
        skills = spread(cluster_labels(distance_NN, limits.cluster_distance, texts))
        both = pairs(bleu_NN, 1.0 - distance_NN)
        _add(row, {"surface/skill_clusters": skills.clusters if skills else None})
        _add_pairs(found, asked.iteration, both, limits.drawn // iterations)


def _add_pairs(found: Diversity, iteration: int, both: Pairs, drawn: int) -> None:
    shares = surface_against_skill(both, found.limits.cluster_distance)
    if shares is not None:
        named = {f"pairs/{name}": value for name, value in dataclasses.asdict(shares).items()}
        _add(found.rows[iteration], named)
    for place in evenly(len(both.bleu_P), drawn):
        pair = (round(float(both.bleu_P[place]), 4), round(float(both.cosine_P[place]), 4))
        found.drawn.append((iteration, *pair))


def _add_recurrence(found: Diversity, asked: Sequence[Asked]) -> None:
    for count, new in enumerate(asked, 1):
        neighbours = nearest([_vectors(one) for one in asked[:count]])
        found.recurrence[new.iteration] = neighbours.near_shares(found.limits.near)
        if count > 1:
            cosine_N, _ = neighbours.earlier()
            found.rows[new.iteration] |= {
                "recurrence/near": float((cosine_N >= found.limits.near).mean()),
                "recurrence/nearest_mean": float(cosine_N.mean()),
                "recurrence/mean_cosine": _mean_cosine(new, asked[: count - 1]),
            }
            found.near += _nearest_rows(new, asked[: count - 1], neighbours)


def _mean_cosine(new: Asked, earlier: Sequence[Asked]) -> float:
    """Return the mean cosine over all pairs of a new and an earlier question, as MAP's mean."""
    total_D = np.sum([_vectors(one).sum(axis=0, dtype=np.float64) for one in earlier], axis=0)
    mean_D = _vectors(new).mean(axis=0, dtype=np.float64)
    return float(mean_D @ total_D / sum(len(one.entries) for one in earlier))


def _nearest_rows(new: Asked, earlier: Sequence[Asked], neighbours: Nearest) -> list[Row]:
    cosine_N, which_N = neighbours.earlier()
    old = [earlier[which].entries[neighbours.place_NU[place, which]] for place, which in enumerate(which_N)]
    bleu = _pair_bleu(
        [(entry.question, other.question) for entry, other in zip(new.entries, old, strict=True)]
    )
    return [
        {
            "iteration": new.iteration,
            "cosine": round(float(cosine), 6),
            "bleu": round(words, 6),
            **{name: value for name, value in _texts(entry).items()},
            **{f"old_{name}": value for name, value in _texts(other).items()},
            "old_iteration": other.iteration,
        }
        for entry, other, cosine, words in zip(new.entries, old, cosine_N, bleu, strict=True)
    ]


def _texts(entry: Remembered) -> Row:
    return {"id": entry.id, "question": entry.question, "code": entry.code}


def _pair_bleu(asked: Sequence[tuple[str, str]]) -> Iterator[float]:
    for start in range(0, len(asked), _PAIRS_AT_ONCE):
        block = asked[start : start + _PAIRS_AT_ONCE]
        bleu_NN = bleu_similarity([text for pair in block for text in pair])
        yield from (float(bleu_NN[2 * i, 2 * i + 1]) for i in range(len(block)))


def _add_seen(found: Diversity, asked: Sequence[Asked]) -> None:
    """Cluster all iterations together, and look which clusters an iteration has in common with its past."""
    if not asked:
        return
    chosen = [evenly(len(one.entries), found.limits.together // len(asked)) for one in asked]
    labels_N = _skill_labels(asked, chosen, found.limits.cluster_distance)
    own = np.split(labels_N, np.cumsum([len(places) for places in chosen])[:-1])
    for count, (one, share) in enumerate(zip(asked, seen_before(own), strict=True)):
        row, past = found.rows[one.iteration], np.concatenate([own[0][:0], *own[:count]])
        row["skill/new_clusters"] = len(np.setdiff1d(own[count], past))
        _add(row, {"recurrence/seen_clusters": share, "recurrence/overlap": overlap(own[count], past)})
        found.overlap[one.iteration] = [overlap(own[count], other) for other in own[: count + 1]]
