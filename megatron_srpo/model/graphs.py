"""What Megatron-Core's modules keep of a backward pass when it is over."""

from torch import Tensor, nn

from megatron_srpo.model.chunks import policies


def drop_kept_graphs(model: nn.Module) -> None:
    """Drop the tensors with a graph that the dispatchers of mixtures of experts keep until the next pass.

    Through the graph they hold the hooks on the weights, and so the model, where Python's garbage collector
    does not look: model, gradients and optimizer state would stay when the trainer is gone.
    """
    layers = (layer for policy in policies(model) for layer in policy.decoder.layers)
    for dispatcher in (vars(layer.mlp).get("token_dispatcher") for layer in layers):
        for name, value in vars(dispatcher).items() if dispatcher is not None else ():
            if isinstance(value, Tensor) and value.requires_grad:
                setattr(dispatcher, name, None)
