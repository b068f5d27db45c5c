"""The maths: pure functions and small frozen dataclasses on torch. No files, no Ray, no logging, no globals.

Shape suffixes, the legend for the whole package:
`b` rows of a batch, `t` positions that share a layer's weights (pixels, tokens), `r` groups of a convolution,
`i` inputs of a layer (bias included, as the last column), `o` its outputs, `c` classes, `q` query vectors,
`s` columns of a Fisher factor, `p` parameters, flattened.
"""
