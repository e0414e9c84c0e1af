"""Known errors by the words that torch, NCCL, gloo, Python and the kernel have for them. Data; standard library only.

A new one is an entry in the list that it belongs to, and a sample of its words in tests/trouble/samples.py.
"""
