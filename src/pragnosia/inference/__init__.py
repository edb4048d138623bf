"""Generation: loading, sampling, the decode loop, and `Pragnosia`, the short way in."""
