"""One forward pass and its local derivatives: tangents pushed forward, signals pulled back within a block."""
