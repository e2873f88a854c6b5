"""What a protocol is, and the means of its metrics with intervals clustered by picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from medvqa.data.example import Prediction, Score
from medvqa.evaluation.comparison import run_mean
from medvqa.evaluation.metrics import is_yes_or_no

# How closed questions are found: by the label of the data set, by a yes/no reference, or not.
Types = Literal["labels", "yes_no"]
# (corpus statistics of one answer, value of their sum): BLEU of a corpus is no mean.
CorpusMetric = tuple[Callable[[Prediction], Sequence[float]], Callable[[Sequence[float]], float]]
Rule = Callable[[Prediction, bool], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """Published values in the protocol's unit, by data set and metric.

    Attributes:
        has_judge: Whether a language model judged the answers; rules alone do not compare then.
    """

    model: str
    source: str
    values: Mapping[str, str]
    has_judge: bool = False


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to score answers.

    Attributes:
        source: Where the rules were read.
        split: Its own rule for open and closed, in words.
        types: The same rule as an option; `--types` may replace it.
        rule: (answer, whether its question is closed) -> values by the name that the community
            uses. A metric that does not apply to the question is left out.
        shown: Metrics in the columns closed, open and overall of the table of all protocols.
        unit: 100 where the community prints percent; values are stored in [0, 1].
        published: Rows that may stand beside, given the same prompt and split.
        remaining: What may still differ from those rows.
        unavailable: Metrics that cannot be computed here, with the reason.
    """

    name: str
    source: str
    split: str
    rule: Rule
    shown: tuple[str | None, str | None, str | None]
    types: Types = "labels"
    unit: int = 100
    digits: int = 2
    corpus: Mapping[str, CorpusMetric] = field(default_factory=dict)
    published: Sequence[PublishedScore] = ()
    remaining: str = ""
    unavailable: Callable[[], str] = str

    def show(self, score: Score | None) -> str:
        """Return a value as the community prints it, with interval and n."""
        if score is None:
            return "-"
        low, mean, high = (
            f"{self.unit * value:.{self.digits}f}" for value in (score.low, score.mean, score.high)
        )
        return f"{mean} [{low}, {high}] n={score.num_examples}"


def is_closed(prediction: Prediction, types: Types) -> bool:
    """Return whether a question counts as closed."""
    if types == "labels":
        return prediction.answer_type == "closed"
    return all(map(is_yes_or_no, prediction.references))


def item_values(
    protocol: Protocol, predictions: Sequence[Prediction], types: Types | None = None
) -> list[Mapping[str, float]]:
    """Return each answer's values by metric; the best reference counts."""
    return [
        protocol.rule(prediction, is_closed(prediction, types or protocol.types))
        for prediction in predictions
    ]


def score_protocol(
    protocol: Protocol,
    predictions: Sequence[Prediction],
    *,
    against: Sequence[Prediction] | None = None,
    types: Types | None = None,
    num_samples: int,
    seed: int = 0,
) -> dict[str, Score]:
    """Return each metric's mean (or corpus value) with its 95 % interval over pictures.

    With `against`, other answers to the same questions, it is the metric's gain over these.
    """
    items = item_values(protocol, predictions, types)
    if against is not None:
        others = item_values(protocol, against, types)
        items = [
            {metric: a[metric] - b[metric] for metric in a if metric in b}
            for a, b in zip(items, others, strict=True)
        ]
    clusters = [prediction.cluster for prediction in predictions]
    scores = {}
    for metric in dict.fromkeys(name for values in items for name in values):
        rated = [
            (values[metric], cluster)
            for values, cluster in zip(items, clusters, strict=True)
            if metric in values
        ]
        scores[metric] = run_mean(
            *zip(*rated, strict=True), bounds=(0, 1) if against is None else (-1, 1)
        )
    for metric, (statistics, value) in protocol.corpus.items():
        rows = [statistics(prediction) for prediction in predictions]
        if against is not None:
            rows = [(*own, *statistics(p)) for own, p in zip(rows, against, strict=True)]
            value = partial(_difference, value)
        scores[metric] = corpus_score(rows, clusters, value, num_samples=num_samples, seed=seed)
    return scores


def _difference(value: Callable[[Sequence[float]], float], sums: Sequence[float]) -> float:
    """Return the value of the first half's statistics less that of the second half's."""
    middle = len(sums) // 2
    return value(sums[:middle]) - value(sums[middle:])


def corpus_score(
    rows: Sequence[Sequence[float]],
    clusters: Sequence[str],
    value: Callable[[Sequence[float]], float],
    *,
    num_samples: int,
    seed: int = 0,
) -> Score:
    """Return a corpus value and its interval: pictures are drawn, their statistics summed."""
    import numpy as np

    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(places), len(rows[0])))
    np.add.at(sums, [places[name] for name in clusters], np.asarray(rows, dtype=float))
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(places), size=(num_samples, len(places)))
    low, high = np.quantile([value(sums[draw].sum(0)) for draw in draws], [0.025, 0.975])
    return Score(mean=value(sums.sum(0)), low=float(low), high=float(high), num_examples=len(rows))


def best(
    references: Sequence[str], values_of: Callable[[str], Mapping[str, float]]
) -> dict[str, float]:
    """Return the highest value of each metric over the references."""
    rows = [values_of(reference) for reference in references]
    return {metric: float(max(row[metric] for row in rows)) for metric in rows[0]}
