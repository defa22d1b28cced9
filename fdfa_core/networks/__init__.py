"""Networks as sequences of blocks: the blocks, the architectures, and how an existing module is cut into blocks."""
