"""What is changed in SGLang's processes, through its hook registry."""

from megatron_srpo.sglang_on_cpu import attention, experts, sampling


def register() -> None:
    """Register seeded sampling, batched attention and the choice of experts.

    Called by SGLang in each of its processes.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    batch = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch"
    HookRegistry.register(batch, sampling.add_seeds, HookType.AFTER)
    HookRegistry.register(
        "sglang.srt.layers.sampler.sampling_from_probs_torch", sampling.sample, HookType.AROUND
    )
    HookRegistry.register(
        "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch",
        sampling.sample_filtered,
        HookType.AROUND,
    )
    HookRegistry.register("sglang.srt.layers.moe.topk.TopK.forward_cpu", experts.choose, HookType.AROUND)
    attention.register()
