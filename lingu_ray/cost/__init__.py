"""What a run costs, from the models' configurations and the settings alone: memory, bytes moved, operations, time.

No weights are loaded. Parameters are counted on the meta device (`models`); what a micro-batch keeps for its backward
pass is found by running the decoder's own code on fake tensors (`trace`); the rest are formulas, which
`docs/scaling.md` explains and `benchmarks/estimate.py` compares with what processes really take.

Legend: sizes are bytes unless they say GiB (2**30 bytes); a *view* is one picture as the vision tower sees it, whole or
a tile. Shape suffixes: R rows and T tokens of a micro-batch, N supervised tokens, D hidden width, V vocabulary.
"""
