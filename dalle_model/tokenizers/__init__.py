"""Image tokenizers: a picture as a grid of discrete codes. See ``base`` for the contract, ``registry`` to build one."""
