"""Train one network.

- ``loop``: train to a target accuracy, then stop early.
- ``checkpoint``: save and resume a training.
- ``pools``: max pooling and ReLU in one compiled pass on the CPU.
"""
