"""The method: KV-shared, selective distillation, in plain PyTorch.

Knows no Ray, no MLflow and no files but the models'. Shape legend of this room:

    B rows of a micro-batch      T tokens of a padded row     D hidden width
    N supervised tokens          M tokens with a KD term      V student vocabulary, U teacher's
    S distilled rows             P donated positions          Q teacher queries
    L layers                     H key/value heads            E head dimension
"""
