"""Measure: what this machine can do, what a model costs on it, and how well it speaks.

machine, limits, bandwidth    the machine: facts, what this process may use, how fast it is
advice                        what will be slow on it and why
accounting, memory            what a model costs, from its shapes: per token, and to run, tune and train
activity                      what a run cost, from the units that woke
energy, meter                 joules by a stated model, and by the machine's own counters
"""
