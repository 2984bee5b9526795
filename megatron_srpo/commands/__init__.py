"""The commands of ``megatron-srpo``, one module each: ``add_arguments(parser)`` and ``run(arguments)``."""
