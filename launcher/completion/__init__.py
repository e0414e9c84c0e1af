"""What a shell offers at the tab key.

No library: shtab writes static tables, which know neither runs nor what comes after `key=`; argcomplete would take over
the shells' side alone, a dozen lines each, and want the parsers of all verbs at every keystroke.
"""
