"""What Prometheus reads about the models in memory."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tunesmith.server.pool import Pool


class PoolMetrics(Collector):
    """Counted when somebody asks.

    Args:
        pool: The models.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def collect(self) -> Iterator[Metric]:
        """Models, memory, answers being written and waiting, tokens so far."""
        engines = [host.engine for host in self.pool.hosts() if host.engine is not None]
        yield GaugeMetricFamily("tunesmith_models_in_memory", "Models in memory", value=len(self.pool.names()))
        yield GaugeMetricFamily("tunesmith_model_bytes", "Memory for them, with caches", value=self.pool.bytes)
        running, waiting = sum(engine.running for engine in engines), sum(engine.waiting for engine in engines)
        yield GaugeMetricFamily("tunesmith_answers_running", "Answers being written", value=running)
        yield GaugeMetricFamily("tunesmith_answers_waiting", "Answers that wait", value=waiting)
        yield CounterMetricFamily("tunesmith_written_tokens", "Tokens written", value=self.pool.tokens_written)
