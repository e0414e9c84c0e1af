"""The verbs of the `paceline` command, one file each: `HELP`, and `main(arguments)` that returns an exit code.

A file is imported only when its verb is used. A new verb is a new file here and a line in `launcher.cli.VERBS`.
"""
