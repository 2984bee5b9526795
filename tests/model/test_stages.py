"""How layers are dealt to pipeline stages: as Megatron-Core does it, and only where it comes out even."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings

from megatron_srpo.config.model import ParallelConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.model.stages import PipelineStages
from tests.weights.reference import dealt
from tests.weights.test_table import pipelines


@settings(deadline=None)
@given(case=pipelines())
def test_layers_are_dealt_out_chunk_by_chunk(case: tuple[PipelineStages, int]) -> None:
    stages, layers = case
    stages.check(layers)
    for (chunk, stage), expected in dealt(layers, stages).items():
        assert list(stages.layers(layers, stage, chunk)) == expected
    assert sum(stages.layer_counts(layers)) == layers


@settings(deadline=None)
@given(case=pipelines())
def test_megatron_core_deals_them_out_alike(case: tuple[PipelineStages, int]) -> None:
    from megatron_srpo.model.build import stage_options
    from megatron_srpo.model.megatron_core import get_num_layers_to_build, get_transformer_layer_offset

    stages, layers = case
    config = SimpleNamespace(
        num_layers=layers,
        pipeline_model_parallel_size=stages.size,
        **{"virtual_pipeline_model_parallel_size": None, **stage_options(stages)},
        pipeline_model_parallel_layout=None,
        account_for_embedding_in_pipeline_split=False,
        account_for_loss_in_pipeline_split=False,
    )
    for stage in range(stages.size):
        for chunk in range(stages.chunks):
            number = chunk if stages.interleaved else None
            own = stages.layers(layers, stage, chunk)
            assert get_transformer_layer_offset(config, number, stage) == own.start
            assert get_num_layers_to_build(config, number, stage) == len(own)


def test_they_come_from_the_configuration() -> None:
    layout = ParallelConfig(pipeline=4, virtual=2, first_stage_layers=6, last_stage_layers=4)
    assert PipelineStages.of(layout) == PipelineStages(4, 2, 6, 4)
    assert PipelineStages.of(ParallelConfig()) == PipelineStages()


@pytest.mark.parametrize(
    ("stages", "layers", "message"),
    [
        (
            PipelineStages(5),
            36,
            "size 5 does not divide the model's 36 layers; .* 1, 2, 3, 4, 6, 9, 12, 18, 36;",
        ),
        (PipelineStages(1, 2), 36, "pipeline parallel size 1 with 2 chunks; raise parallel.pipeline"),
        (PipelineStages(1, 1, 3), 36, "a first or last stage of its own size; raise parallel.pipeline"),
        (PipelineStages(4, 2), 36, r"2 virtual chunks .* stages of 9 layers; possible .* stages: 1, 3, 9$"),
        (PipelineStages(4, 2, 7, 5), 36, r"2 virtual chunks .* stages of 5, 7 layers; .*: 1$"),
        (PipelineStages(4, 1, 7), 36, "first has 7 and the last as many as the others"),
        (PipelineStages(2, 1, 36), 36, "36 layers do not fill 2 pipeline stages of which the first has 36"),
        (PipelineStages(3, 1, 20, 16), 36, "first has 20 and the last 16"),
    ],
)
def test_what_does_not_come_out_even(stages: PipelineStages, layers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stages.check(layers)
