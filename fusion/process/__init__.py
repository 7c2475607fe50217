"""BELIEF BEFORE LOOKING: how the field behaves in space, time and colour, and how tiles share what they learn."""
