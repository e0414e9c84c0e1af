"""The data sets by name, one module each: `build(config, **config.args) -> Splits`.

A module's name is the value of `data.name`; a new data set is a new file here and one in `configs/data`.
"""
