"""Figures of a server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from experts.mixture import Mixture

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server; their names begin with `selfadapt_`."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "selfadapt_requests", "Requests, by route and status.", ["route", "status"], registry=own
        )
        self.tokens = Counter(
            "selfadapt_tokens",
            "Tokens, by kind: prompt, kept (known from an earlier prompt), answer.",
            ["kind"],
            registry=own,
        )
        self.dispatch = Histogram(
            "selfadapt_dispatch_seconds", "Pass one: choosing who answers.", buckets=SECONDS, registry=own
        )
        self.answer = Histogram(
            "selfadapt_answer_seconds", "Pass two: until the answers are complete.", buckets=SECONDS, registry=own
        )
        self.first = Histogram(
            "selfadapt_first_token_seconds", "Pass two, up to the first token.", buckets=SECONDS, registry=own
        )
        self.shares = Counter(
            "selfadapt_expert_share", "Sum of the experts' weights over all answers.", ["expert"], registry=own
        )
        self.queue = Gauge("selfadapt_queued_answers", "Answers waiting for a place.", registry=own)
        self.batch = Gauge("selfadapt_batch_rows", "Answers being written.", registry=own)

    def count(self, mixture: Mixture, answers: int) -> None:
        """Counts who has a part in this many answers to each prompt; what is left of Σα = 1 is the base's."""
        for row in range(len(mixture)):
            weights = mixture[row]
            for name, weight in weights.items():
                self.shares.labels(name).inc(max(0.0, weight) * answers)
            self.shares.labels("base").inc(max(0.0, 1 - sum(weights.values())) * answers)

    @property
    def text(self) -> bytes:
        return generate_latest(self.registry)
