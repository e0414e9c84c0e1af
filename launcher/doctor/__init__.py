"""Checks of the environment: small functions that each return a Finding, none of which can break another.

A new check is a function with one argument in one of the modules here, and its name in that module's CHECKS.
"""
