"""The models that SGLang registers without importing all of its model files (several seconds per process).

Named to SGLang by ``SGLANG_EXTERNAL_MODEL_PACKAGE``. Any other model is found all the same, at that cost.
"""
