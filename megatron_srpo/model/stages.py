"""How a model's layers are dealt to pipeline stages: evenly or not, in one piece or in several."""

from dataclasses import dataclass

from megatron_srpo.config.model import ParallelConfig
from megatron_srpo.errors import ConfigError


@dataclass(frozen=True)
class PipelineStages:
    """The stages of one pipeline.

    Attributes:
        size: how many there are.
        chunks: parts of every stage. With several, a micro-batch runs through all stages once per part
            (Megatron's interleaved schedule, "virtual pipeline"), and the pipeline idles as many times less.
        first, last: layers of the first and the last stage where they differ from the others'.
    """

    size: int = 1
    chunks: int = 1
    first: int | None = None
    last: int | None = None

    @classmethod
    def of(cls, layout: ParallelConfig) -> "PipelineStages":
        """Return what a configuration asks for."""
        return cls(layout.pipeline, layout.virtual, layout.first_stage_layers, layout.last_stage_layers)

    @property
    def interleaved(self) -> bool:
        """Whether a stage holds several chunks."""
        return self.chunks > 1

    def layer_counts(self, num_layers: int) -> tuple[int, ...]:
        """Return the number of layers of every stage, as if everything divided (see :meth:`check`)."""
        if self.size == 1:
            return (num_layers,)
        ends = [count for count in (self.first, self.last) if count is not None]
        middle = (num_layers - sum(ends)) // max(1, self.size - len(ends))
        counts = [middle] * self.size
        counts[0] = middle if self.first is None else self.first
        counts[-1] = middle if self.last is None else self.last
        return tuple(counts)

    def layers(self, num_layers: int, stage: int, chunk: int = 0) -> range:
        """Return the layers of a chunk of a stage, counted from 0 over the whole model."""
        parts = [count // self.chunks for count in self.layer_counts(num_layers)]
        start = chunk * sum(parts) + sum(parts[:stage])
        return range(start, start + parts[stage])

    def prefix(self, chunk: int) -> str:
        """Return what the names of a chunk's parameters begin with: its number, where there are several."""
        return f"{chunk}." if self.interleaved else ""

    def check(self, num_layers: int) -> None:
        """Refuse what does not come out even.

        Raises:
            ConfigError: names the sizes and those that would work.
        """
        uneven = self.first is not None or self.last is not None
        if self.size == 1 and (uneven or self.interleaved):
            what = f"{self.chunks} chunks" if self.interleaved else "a first or last stage of its own size"
            raise ConfigError(
                f"pipeline parallel size 1 with {what}; raise parallel.pipeline, or leave parallel.virtual, "
                "parallel.first_stage_layers and parallel.last_stage_layers out"
            )
        counts = self.layer_counts(num_layers)
        if sum(counts) != num_layers or min(counts) < 1:
            self._refuse_counts(num_layers, uneven)
        bad = sorted({count for count in counts if count % self.chunks})
        if bad:
            raise ConfigError(
                f"{self.chunks} virtual chunks (parallel.virtual) do not divide stages of "
                f"{', '.join(map(str, bad))} layers; possible for {num_layers} layers on {self.size} stages: "
                f"{', '.join(str(n) for n in range(1, max(counts) + 1) if not any(c % n for c in counts))}"
            )

    def _refuse_counts(self, num_layers: int, uneven: bool) -> None:
        if uneven:
            own = "as many as the others"
            raise ConfigError(
                f"{num_layers} layers do not fill {self.size} pipeline stages of which the first has "
                f"{self.first or own} and the last {self.last or own}; "
                "change parallel.first_stage_layers or parallel.last_stage_layers so that the rest is "
                "shared evenly, and no stage is empty"
            )
        sizes = ", ".join(str(n) for n in range(1, num_layers + 1) if num_layers % n == 0)
        raise ConfigError(
            f"pipeline parallel size {self.size} does not divide the model's {num_layers} layers; possible "
            f"sizes: {sizes}; or give the first or last stage another number of layers "
            "(parallel.first_stage_layers, parallel.last_stage_layers)"
        )
