"""
A small stand-in for the parts of detectron2 that this package uses, for machines without it.

A strict subset: names, parameters, keys and numbers are detectron2's; what is left out raises
``NotImplementedError``. Boxes only. Loggers carry detectron2's names, so that log lines agree too.
"""
