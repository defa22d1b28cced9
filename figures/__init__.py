"""One module a figure: `compute` turns logs into the plotted frame, `draw` turns the frame into a picture."""
