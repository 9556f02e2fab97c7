"""A strict, boxes-only subset of detectron2: same names, keys and numbers; all else raises."""
