"""What ``build_policy`` makes before any weights are loaded."""

from typing import Any

import pytest
import torch

from megatron_srpo.config.model import ModelConfig, ParallelConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.model.architecture import Qwen3Architecture
from tests.model.tiny import write_random_qwen3
from tests.ranks import run_ranks


def built(rank: int, world: int, folder: str, tp: int, pp: int, dtype: torch.dtype) -> dict[str, Any]:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel

    groups = initialize_parallel(tp, pp)
    model = build_policy(Qwen3Architecture.from_hf_folder(folder), groups, dtype, vocab_multiple=16)
    parameters = dict(model.named_parameters())
    return {
        "dtypes": {parameter.dtype for parameter in parameters.values()},
        "matrices": {float(p.abs().max()) for p in parameters.values() if p.dim() == 2},
        "norms": {(float(p.min()), float(p.max())) for p in parameters.values() if p.dim() == 1},
        "sharded": {name for name, p in parameters.items() if p.dim() == 2 and p.tensor_model_parallel},
        "all_matrices": {name for name, p in parameters.items() if p.dim() == 2},
        "embedding_rows": model.embedding.word_embeddings.weight.shape[0] if groups.is_first_stage else None,
        "layers": len(model.decoder.layers),
        "config": model.config.calculate_per_token_loss,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_from_zero_matrices_and_unit_norms(tmp_path, dtype):
    folder = str(write_random_qwen3(tmp_path, vocab_size=100))
    for facts in run_ranks(2, built, folder, 2, 1, dtype):
        assert facts["dtypes"] == {dtype}
        assert facts["matrices"] == {0.0} and facts["norms"] == {(1.0, 1.0)}
        assert facts["embedding_rows"] == 64  # 100 rows padded to 128 = 8 * 16, over two ranks
        assert facts["layers"] == 2
        assert facts["config"] is True


def test_matrices_are_marked_as_sharded(tmp_path):
    # Megatron-Core counts unmarked parameters on one tensor-parallel rank only in the gradient norm
    folder = str(write_random_qwen3(tmp_path))
    for facts in run_ranks(2, built, folder, 2, 1, torch.float32):
        assert facts["sharded"] == facts["all_matrices"]


def test_stages_share_the_layers(tmp_path):
    folder = str(write_random_qwen3(tmp_path, num_hidden_layers=4))
    first, last = run_ranks(2, built, folder, 1, 2, torch.float32)
    assert (first["layers"], last["layers"]) == (2, 2)
    assert first["embedding_rows"] == 96 and last["embedding_rows"] is None


def refused(rank: int, world: int, folder: str) -> str:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel

    groups = initialize_parallel(world, 1)
    try:
        build_policy(Qwen3Architecture.from_hf_folder(folder), groups)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_a_layout_that_cannot_split_the_model_is_refused(tmp_path):
    folder = str(write_random_qwen3(tmp_path, num_key_value_heads=1))
    assert "does not divide the model's 1 key/value heads" in run_ranks(2, refused, folder)[0]


def test_configs_check_themselves():
    assert ModelConfig(path="x").dtype == "float32"
    with pytest.raises(ConfigError, match="dtype"):
        ModelConfig(path="x", dtype="float16")
    with pytest.raises(ConfigError, match="tensor"):
        ParallelConfig(tensor=0)
    with pytest.raises(ConfigError, match="pipeline"):
        ParallelConfig(pipeline=-1)
